"""Captures of LiDAR packets made here: a Velodyne that looks at a wall around it, and others that are named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pointcloud.io import read_points
from tests.pointcloud.cloud_files import put


def velodyne(azimuths: list[float], distances: np.ndarray, sensor: int, mode: int = 0x37, flag: int = 0xEEFF) -> bytes:
    """A packet: 12 azimuths in degrees, distances [12, 32] in steps. Reflectivity: the laser's number."""
    blocks = b"".join(
        struct.pack("<HH", flag, round(angle * 100) % 36000)
        + b"".join(struct.pack("<HB", int(d), laser) for laser, d in enumerate(row))
        for angle, row in zip(azimuths, distances, strict=True)
    )
    return blocks + struct.pack("<IBB", 1_000_000, mode, sensor)


def capture(payloads: list[bytes], port: int = 2368, order: str = "<", link: int = 1, tag: bytes = b"") -> bytes:
    out = struct.pack(order + "IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    before = {1: bytes(12) + tag + b"\x08\x00", 101: b"", 113: bytes(16)}[link]
    for payload in payloads:
        udp = struct.pack(">HHHH", port, port, 8 + len(payload), 0) + payload
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0, bytes(4), bytes(4))
        frame = before + ip + udp
        out += struct.pack(order + "IIII", 0, 0, len(frame), len(frame)) + frame
    return out


@pytest.mark.parametrize(
    ("order", "link", "tag"), [("<", 1, b""), (">", 1, b"\x81\x00\x00\x05"), ("<", 101, b""), ("<", 113, b"")]
)
def test_vlp16(tmp_path: Path, order: str, link: int, tag: bytes) -> None:
    distances = np.zeros((12, 32))
    distances[0, 0] = 5000  # 10 m at azimuth 0, 15 degrees down
    distances[3, 15] = 5000  # the last laser of the first cycle, 15 degrees up
    distances[3, 16 + 1] = 2500  # the second cycle: 1 degree up
    content = capture([velodyne([90 + 0.4 * i for i in range(12)], distances, 0x22)], order=order, link=link, tag=tag)
    cloud = read_points(put(tmp_path / "a.pcap", content))
    expected = []
    for reach, up, height, azimuth in (
        (10, -15, 0.0112, 90),
        (10, 15, -0.0112, 91.2 + 0.4 * 15 * 2.304 / 110.592),
        (5, 1, -0.0007, 91.2 + 0.4 * (55.296 + 2.304) / 110.592),
    ):
        turn, up = np.radians(azimuth), np.radians(up)
        expected.append(
            [reach * np.cos(up) * np.cos(turn), -reach * np.cos(up) * np.sin(turn), reach * np.sin(up) + height]
        )
    assert np.abs(cloud.xyz.numpy() - expected).max() < 1e-5
    assert cloud.intensity is not None and cloud.intensity.tolist() == [0, 15, 17]
    assert cloud.extra["ring"].tolist() == [0, 15, 8]
    assert cloud.extra["time"].tolist() == [1_000_000, 1_000_366, 1_000_389]


@pytest.mark.parametrize(("sensor", "low", "high"), [(0x21, -30.67, 10.67), (0x24, -10, 10), (0x28, -25, 15)])
def test_other_sensors_see_a_sphere(tmp_path: Path, sensor: int, low: float, high: float) -> None:
    payloads = [velodyne([(12 * p + i) * 0.4 for i in range(12)], np.full((12, 32), 1000), sensor) for p in range(80)]
    cloud = read_points(put(tmp_path / "a.pcap", capture(payloads)))
    xyz, reach = cloud.xyz.numpy(), 4.0 if sensor == 0x28 else 2.0
    assert np.abs(np.linalg.norm(xyz, axis=1) - reach).max() < 0.01
    up = np.degrees(np.arcsin(np.clip(xyz[:, 2] / reach, -1, 1)))
    assert abs(up.min() - low) < 0.3 and abs(up.max() - high) < 0.3
    ring = cloud.extra["ring"].numpy()
    means = [up[ring == r].mean() for r in range(ring.max() + 1)]
    assert means == sorted(means) and len(means) == (16 if sensor == 0x24 else 32)
    assert cloud.extra["turn"].tolist() == sorted(cloud.extra["turn"].tolist()) and cloud.extra["turn"].max() == 1


def test_dual_returns_share_a_direction(tmp_path: Path) -> None:
    angles = [0.4 * (i // 2) for i in range(12)]
    cloud = read_points(put(tmp_path / "a.pcap", capture([velodyne(angles, np.full((12, 32), 1000), 0x22, 0x39)])))
    xyz = cloud.xyz.numpy().reshape(6, 2, 32, 3)
    assert np.array_equal(xyz[:, 0], xyz[:, 1])
    flat = np.degrees(np.arctan2(-xyz[:, 0, :, 1], xyz[:, 0, :, 0])).reshape(-1)
    assert (np.diff(flat) > 0).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (capture([b"\xee\xff" + bytes(1078)]), "Hesai"),
        (capture([bytes(6464)], port=7502), "Ouster"),
        (capture([bytes(1362)], port=56300), "Livox"),
        (capture([bytes(80)], port=53), "got 1 others"),
        (capture([]), "got 0 others"),
        (capture([velodyne([0.0] * 12, np.ones((12, 32)), 0x01, flag=0xDDFF)]), "HDL-64E"),
        (capture([velodyne([0.0] * 12, np.ones((12, 32)), 0x99)]), "product 0x99"),
        (capture([velodyne([0.0] * 12, np.ones((12, 32)), 0x22)])[:-1], "truncated inside a packet"),
        (capture([velodyne([0.0] * 12, np.ones((12, 32)), 0x22)])[:30], "truncated inside a packet"),
        (b"\x0a\x0d\x0d\x0a" + bytes(60), "editcap"),
        (capture([])[:20] + struct.pack("<I", 147), "link type 147"),
        (capture([]) + struct.pack("<IIII", 0, 0, 2**31, 2**31), "claims 2147483648 bytes"),
    ],
)  # fmt: skip
def test_errors(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.pcap: .*{message}"):
        read_points(put(tmp_path / "a.pcap", content))
