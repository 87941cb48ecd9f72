"""E57 files written here by the standard's rules, and by the reference library where that is installed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pointcloud.io import read_points
from tests.pointcloud.cloud_files import put

PAGE = 1024
NAMESPACE = "http://www.astm.org/COMMIT/E57/2010-e57-v1.0"


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def paged(data: bytes) -> bytes:
    data += bytes(-len(data) % (PAGE - 4))
    pages = [data[i : i + PAGE - 4] for i in range(0, len(data), PAGE - 4)]
    return b"".join(page + struct.pack(">I", crc32c(page)) for page in pages)


def physical(logical: int) -> int:
    return logical // (PAGE - 4) * PAGE + logical % (PAGE - 4)


def pack(values: list[int], bits: int) -> bytes:
    """Whole numbers of `bits` bits, the first in the lowest bits."""
    number = sum(value << i * bits for i, value in enumerate(values))
    return number.to_bytes(-(-len(values) * bits // 8), "little")


def e57(
    fields: list[tuple[str, str, bytes]], n: int, extra: str = "", packets: int = 3, claim: int | None = None
) -> bytes:
    """A file of one scan. fields: name, attributes of the prototype, and the bytes of all points."""
    body = b""
    for i in range(packets):
        parts = [data[len(data) * i // packets : len(data) * (i + 1) // packets] for _, _, data in fields]
        packet = b"".join(struct.pack("<H", len(part)) for part in parts) + b"".join(parts)
        packet += bytes(-(len(packet) + 6) % 4)
        body += struct.pack("<BBHH", 1, 0, len(packet) + 5, len(fields)) + packet
        if i == 0:
            body += struct.pack("<BBH", 2, 0, 15) + bytes(12)
    section = struct.pack("<B7xQQQ", 1, 32 + len(body), physical(48 + 32), 0) + body
    prototype = "".join(f"<{name} {attributes}/>" for name, attributes, _ in fields)
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?><e57Root type="Structure" xmlns="{NAMESPACE}"><data3D type="Vector">'
        f'<vectorChild type="Structure">{extra}<points type="CompressedVector" fileOffset="{physical(48)}" '
        f'recordCount="{n if claim is None else claim}"><prototype type="Structure">{prototype}</prototype>'
        f'<codecs type="Vector"/></points></vectorChild></data3D></e57Root>'
    ).encode()
    at = 48 + len(section)
    total = len(paged(bytes(at + len(xml))))
    head = struct.pack("<8sIIQQQQ", b"ASTM-E57", 1, 0, total, physical(at), len(xml), PAGE)
    return paged(head + section + xml)


def floats(values: np.ndarray, kind: str = "<f8") -> bytes:
    return values.astype(kind).tobytes()


def sample(n: int = 200) -> tuple[np.ndarray, list[tuple[str, str, bytes]]]:
    rng = np.random.default_rng(3)
    xyz = rng.normal(0, 10, (n, 3))
    counts = np.rint((xyz[:, 2] + 100) / 0.001).astype(int)
    fields = [
        ("cartesianX", 'type="Float"', floats(xyz[:, 0])),
        ("cartesianY", 'type="Float" precision="single"', floats(xyz[:, 1], "<f4")),
        (
            "cartesianZ",
            'type="ScaledInteger" minimum="0" maximum="262143" scale="0.001" offset="-100"',
            pack(counts.tolist(), 18),
        ),
    ]
    return np.column_stack([xyz[:, 0], xyz[:, 1].astype(np.float32), counts * 0.001 - 100]), fields


@pytest.mark.parametrize("packets", [1, 3])
def test_each_encoding(tmp_path: Path, packets: int) -> None:
    xyz, fields = sample()
    n = len(xyz)
    rng = np.random.default_rng(1)
    rows, wide = rng.integers(-5, 1000, n), rng.integers(-(2**63), 2**63 - 1, n)
    odd = rng.integers(0, 2**60, n)
    fields += [
        ("rowIndex", 'type="Integer" minimum="-5" maximum="999"', pack((rows + 5).tolist(), 10)),
        ("wide", 'type="Integer"', pack([int(v) + 2**63 for v in wide], 64)),
        ("odd", f'type="Integer" minimum="0" maximum="{2**60}"', pack(odd.tolist(), 61)),
        ("same", 'type="Integer" minimum="7" maximum="7"', b""),
        ("intensity", 'type="Float" precision="single"', floats(np.arange(n), "<f4")),
        ("colorRed", 'type="Integer" minimum="0" maximum="255"', bytes(range(n))),
        ("colorGreen", 'type="Integer" minimum="0" maximum="65535"', pack([257 * i for i in range(n)], 16)),
        ("colorBlue", 'type="Integer" minimum="0" maximum="1"', pack([i % 2 for i in range(n)], 1)),
    ]
    cloud = read_points(put(tmp_path / "a.e57", e57(fields, n, packets=packets)))
    assert np.array_equal(cloud.xyz.numpy(), xyz.astype(np.float32))
    for name, values in (("rowindex", rows), ("wide", wide), ("odd", odd), ("same", np.full(n, 7))):
        assert np.array_equal(cloud.extra[name].numpy(), values), name
    assert cloud.intensity is not None and cloud.intensity.tolist() == list(range(n))
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[i, i, 255 * (i % 2)] for i in range(n)]


def test_pose_and_invalid_points(tmp_path: Path) -> None:
    xyz, fields = sample(40)
    fields.append(("cartesianInvalidState", 'type="Integer" minimum="0" maximum="2"', pack([2, 0] * 20, 2)))
    pose = (
        '<pose type="Structure"><rotation type="Structure"><w type="Float">0.7071067811865476</w><x type="Float"/>'
        '<y type="Float"/><z type="Float">0.7071067811865476</z></rotation><translation type="Structure">'
        '<x type="Float">10</x><y type="Float">20</y><z type="Float">30</z></translation></pose>'
    )
    path = put(tmp_path / "a.e57", e57(fields, 40, pose))
    with pytest.raises(ValueError, match="20 of 40 points"):
        read_points(path)
    turned = np.stack([-xyz[:, 1], xyz[:, 0], xyz[:, 2]], axis=1) + (10, 20, 30)  # a quarter turn to the left
    assert np.abs(read_points(path, invalid="drop").xyz.numpy() - turned[1::2]).max() < 1e-5


def test_spherical_coordinates(tmp_path: Path) -> None:
    values = {
        "sphericalRange": [2.0, 3.0],
        "sphericalAzimuth": [0.0, np.pi / 2],
        "sphericalElevation": [np.pi / 6, 0.0],
    }
    fields = [(name, 'type="Float"', floats(np.array(column))) for name, column in values.items()]
    cloud = read_points(put(tmp_path / "a.e57", e57(fields, 2)))
    assert np.abs(cloud.xyz.numpy() - [[3**0.5, 0, 1], [0, 3, 0]]).max() < 1e-6


def test_damage_is_noticed(tmp_path: Path) -> None:
    content = e57(sample()[1], 200)
    for place in range(0, len(content), 211):
        broken = bytearray(content)
        broken[place] ^= 4
        with pytest.raises(ValueError, match=r"a\.e57: "):
            read_points(put(tmp_path / "a.e57", bytes(broken)))
    for cut in range(0, len(content), 307):
        with pytest.raises(ValueError, match=r"a\.e57: "):
            read_points(put(tmp_path / "a.e57", content[:cut]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (e57(sample()[1], 200, claim=10**15), "claims 1000000000000000 points"),
        (e57(sample()[1], 200, claim=-1), "claims -1 points"),
        (e57([(f"cartesian{a}", 'type="Integer" minimum="1" maximum="1"', b"") for a in "XYZ"], 10**12), "constant"),
        (e57(sample()[1][:2], 200), "expected cartesian or spherical"),
        (e57([(f"cartesian{a}", 'type="Integer" minimum="9" maximum="1"', b"") for a in "XYZ"], 1), "minimum <= max"),
        (e57(sample()[1], 200, "<!-- <!ENTITY a 'b'> -->"), "entities"),
        (e57(sample()[1], 200, "<broken>"), "the XML of the E57 file"),
    ],
)  # fmt: skip
def test_claims_are_not_believed(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.e57: .*{message}"):
        read_points(put(tmp_path / "a.e57", content))


def test_a_file_of_the_reference_library(tmp_path: Path) -> None:
    pye57 = pytest.importorskip("pye57", reason="pye57, the reference library's binding, is not installed")
    rng = np.random.default_rng(0)
    scan = {f"cartesian{axis}": rng.normal(0, 20, 3000) for axis in "XYZ"} | {"intensity": rng.random(3000)}
    scan |= {f"color{name}": rng.integers(0, 256, 3000) for name in ("Red", "Green", "Blue")}
    file = pye57.E57(str(tmp_path / "a.e57"), mode="w")
    for move in ([0.0, 0, 0], [5.0, 6, 7]):
        file.write_scan_raw(scan, rotation=np.array([1.0, 0, 0, 0]), translation=np.array(move))
    file.close()
    cloud = read_points(tmp_path / "a.e57")
    xyz = np.stack([scan[f"cartesian{axis}"] for axis in "XYZ"], axis=1)
    assert np.abs(cloud.xyz.numpy() - np.concatenate([xyz, xyz + (5, 6, 7)])).max() < 1e-4
    assert cloud.extra["scan"].tolist() == [0] * 3000 + [1] * 3000
