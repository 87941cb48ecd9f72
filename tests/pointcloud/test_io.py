"""Readers and writers: round trips of every format, real files, damaged and hostile files."""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pointcloud.io import read_points, write_ply
from pointcloud.points import PointCloud
from tests.pointcloud.cloud_files import (
    SAMPLES,
    N,
    as_rows,
    ascii_rows,
    lzf_compress,
    pcd_bytes,
    pcd_header,
    ply_bytes,
    put,
    read_or_none,
    street,
    xyz_of,
)


def check_equal(cloud: PointCloud, columns: dict[str, np.ndarray]) -> None:
    assert torch.equal(cloud.xyz, xyz_of(columns))
    assert cloud.intensity is not None and torch.equal(cloud.intensity, torch.from_numpy(columns["intensity"]))
    assert cloud.labels is not None and np.array_equal(cloud.labels.numpy(), columns["label"].astype(np.int64))
    assert np.array_equal(cloud.extra["ring"].numpy(), columns["ring"].astype(np.int32))


# --- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("n", [0, 1, N])
def test_pcd_round_trip(tmp_path: Path, data: str, n: int) -> None:
    columns = street(n)
    (tmp_path / "a.pcd").write_bytes(pcd_bytes(columns, data))
    check_equal(read_points(tmp_path / "a.pcd"), columns)


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_pcd_types_counts_and_padding(tmp_path: Path, data: str) -> None:
    rng = np.random.default_rng(1)
    columns = {
        "x": rng.normal(size=N), "y": rng.normal(size=N), "z": rng.normal(size=N),
        "_": np.zeros((N, 3), np.uint8), "hist": rng.normal(size=(N, 5)).astype(np.float32),
        "t": rng.integers(0, 2**63, N).astype(np.uint64), "gps": rng.integers(-(2**62), 2**62, N),
        "small": rng.integers(-128, 128, N).astype(np.int8),
    }  # fmt: skip
    (tmp_path / "a.pcd").write_bytes(pcd_bytes(columns, data))
    cloud = read_points(tmp_path / "a.pcd")
    assert torch.equal(cloud.xyz, xyz_of(columns))
    assert sorted(cloud.extra) == ["gps", "hist", "small", "t"]
    for name in cloud.extra:
        assert np.array_equal(cloud.extra[name].numpy(), columns[name].astype(cloud.extra[name].numpy().dtype)), name
    assert cloud.extra["t"].dtype == torch.int64  # nanoseconds do not fit a float64


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("kind", [np.float32, np.uint32])
def test_pcd_packed_colour(tmp_path: Path, data: str, kind: type) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (N, 3)).astype(np.uint32)
    packed = rgb[:, 0] << 16 | rgb[:, 1] << 8 | rgb[:, 2]
    columns = {a: np.arange(N, dtype=np.float32) for a in "xyz"} | {"rgb": packed.view(kind)}
    (tmp_path / "a.pcd").write_bytes(pcd_bytes(columns, data))
    cloud = read_points(tmp_path / "a.pcd")
    assert cloud.rgb is not None and np.array_equal(cloud.rgb.numpy(), rgb)


def test_pcd_opaque_colour_is_a_nan_and_still_a_colour(tmp_path: Path) -> None:
    packed = np.array([0xFF0A141E, 0xFFFFFFFF], np.uint32).view(np.float32)
    columns = {a: np.zeros(2, np.float32) for a in "xyz"} | {"rgba": packed}
    (tmp_path / "a.pcd").write_bytes(pcd_bytes(columns, "binary"))
    cloud = read_points(tmp_path / "a.pcd")
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[10, 20, 30], [255, 255, 255]]
    assert cloud.extra["alpha"].tolist() == [255, 255]


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("n", [0, 1, N])
def test_ply_round_trip(tmp_path: Path, order: str, n: int) -> None:
    columns = street(n)
    (tmp_path / "a.ply").write_bytes(ply_bytes(columns, order))
    check_equal(read_points(tmp_path / "a.ply"), columns)


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_other_elements_are_skipped(tmp_path: Path, order: str) -> None:
    columns = street()
    header = "element strip 2\nproperty list uchar int idx\nproperty float w\nelement camera 1\nproperty double f"
    mark = ">" if "big" in order else "<"
    payload = (
        struct.pack(f"{mark}B3if", 3, 1, 2, 3, 0.5) + struct.pack(f"{mark}Bf", 0, 0.5) + struct.pack(f"{mark}d", 1)
    )
    payload = b"3 1 2 3 0.5\n0 0.5\n1.0\n" if order == "ascii" else payload
    faces = "element face 1\nproperty list uchar int vertex_indices"
    content = ply_bytes(columns, order, header, payload, faces)
    (tmp_path / "a.ply").write_bytes(
        content + (b"3 0 1 2\n" if order == "ascii" else struct.pack(f"{mark}B3i", 3, 0, 1, 2))
    )
    check_equal(read_points(tmp_path / "a.ply"), columns)


@pytest.mark.parametrize("n", [0, 1, N])
def test_write_ply_round_trip(tmp_path: Path, n: int) -> None:
    columns = street(n)
    rgb = torch.randint(0, 256, (n, 3), dtype=torch.uint8)
    cloud = PointCloud(xyz_of(columns), torch.from_numpy(columns["intensity"]), rgb)
    labels = torch.arange(n) - 1
    write_ply(tmp_path / "a.ply", cloud, labels=labels)
    back = read_points(tmp_path / "a.ply")
    assert (
        torch.equal(back.xyz, cloud.xyz) and back.intensity is not None and torch.equal(back.intensity, cloud.intensity)
    )
    assert back.labels is not None and torch.equal(back.labels, labels)
    assert back.rgb is not None and torch.equal(back.rgb, rgb)
    write_ply(tmp_path / "a.ply", cloud, colors=255 - rgb)
    again = read_points(tmp_path / "a.ply")
    assert again.labels is None and again.rgb is not None and torch.equal(again.rgb, 255 - rgb)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_another_reader_reads_what_was_written(tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    columns = street()
    rgb = torch.randint(0, 256, (N, 3), dtype=torch.uint8)
    cloud = PointCloud(xyz_of(columns), torch.from_numpy(columns["intensity"]), rgb)
    write_ply(tmp_path / "a.ply", cloud, labels=torch.arange(N) - 1)
    rows = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"]
    expected = [*cloud.xyz.T, cloud.intensity, *rgb.T, torch.arange(N) - 1]
    names = ("x", "y", "z", "intensity", "red", "green", "blue", "label")
    assert {each.name for each in rows.properties} == set(names)
    for name, column in zip(names, expected):
        assert np.array_equal(rows[name], column.numpy()), name


def test_write_ply_rejects_and_leaves_the_old_file(tmp_path: Path) -> None:
    cloud = PointCloud(torch.zeros(4, 3))
    write_ply(tmp_path / "a.ply", cloud)
    before = (tmp_path / "a.ply").read_bytes()
    for labels in (torch.zeros(3, dtype=torch.int64), torch.zeros(4), torch.full((4,), 2**31)):
        with pytest.raises(ValueError, match="labels must"):
            write_ply(tmp_path / "a.ply", cloud, labels=labels)
    with pytest.raises(ValueError, match=r"colors must be uint8 \[N, 3\] with N = 4"):
        write_ply(tmp_path / "a.ply", cloud, colors=torch.zeros(4, 3))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_ply(tmp_path / "none" / "a.ply", cloud)
    with pytest.raises(IsADirectoryError):
        write_ply(tmp_path, cloud)
    assert (tmp_path / "a.ply").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_utm_coordinates_keep_their_millimetres(tmp_path: Path) -> None:
    world = np.array([500_000.0, 5_400_000.0, 350.0]) + np.random.default_rng(3).uniform(-50, 50, (N, 3)).round(3)
    np.savetxt(tmp_path / "a.xyz", world, fmt="%.3f")
    cloud = read_points(tmp_path / "a.xyz")
    assert np.abs(cloud.world().numpy() - world).max() < 1e-4
    assert cloud.origin[2] == 0 and cloud.xyz.abs().max() < 500
    write_ply(tmp_path / "a.ply", cloud)
    assert np.abs(read_points(tmp_path / "a.ply").world().numpy() - world).max() < 1e-4


@pytest.mark.parametrize("suffix", ["las", "laz"])
@pytest.mark.parametrize("n", [0, 1, N])
def test_las_round_trip(tmp_path: Path, suffix: str, n: int) -> None:
    world, path = write_las(tmp_path / f"a.{suffix}", n)
    cloud = read_points(path)
    assert len(cloud) == n and np.abs(cloud.world().numpy() - world).max(initial=0) < 6e-4
    assert cloud.intensity is not None and cloud.intensity.tolist() == [float(i % 65536) for i in range(n)]
    assert cloud.labels is not None and cloud.labels.tolist() == [i % 19 for i in range(n)]
    assert cloud.rgb is not None and cloud.rgb[:, 0].tolist() == [i % 256 for i in range(n)]
    assert cloud.extra["gps_time"].dtype == torch.float64


def write_las(path: Path, n: int) -> tuple[np.ndarray, Path]:
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(point_format=7, version="1.4")
    header.offsets, header.scales = [500_000, 5_400_000, 0], [0.001] * 3
    las = laspy.LasData(header)
    world = np.array([500_000.0, 5_400_000.0, 350.0]) + np.random.default_rng(4).uniform(0, 99, (n, 3))
    las.x, las.y, las.z = world.T
    las.intensity = np.arange(n) % 65536
    las.classification = np.arange(n) % 19
    las.red = (np.arange(n) % 256) * 256
    # One 16-bit value above 255 decides for the whole file.
    las.green = las.blue = np.full(n, 65535)
    las.gps_time = np.arange(n) * 0.1
    las.write(str(path))
    return world, path


@pytest.mark.parametrize("fmt", ["%.9g", "%.9e"])
@pytest.mark.parametrize("delimiter", [" ", ",", ";", "\t"])
@pytest.mark.parametrize("head", ["", "names", "# names", "//names", "137"])
def test_text_round_trip(tmp_path: Path, fmt: str, delimiter: str, head: str) -> None:
    columns = street()
    rows = np.stack([columns[a] for a in ("x", "y", "z", "intensity")], axis=1)
    names = delimiter.join(("X", "Y", "Z", "Intensity"))
    with open(tmp_path / "a.txt", "w") as file:
        if head:
            file.write(head.replace("names", names) + "\n")
        np.savetxt(file, rows, fmt=fmt, delimiter=delimiter)
    cloud = read_points(tmp_path / "a.txt")
    assert torch.equal(cloud.xyz, xyz_of(columns))
    assert cloud.intensity is not None and np.array_equal(cloud.intensity.numpy(), columns["intensity"])


def test_text_columns(tmp_path: Path) -> None:
    (tmp_path / "a.pts").write_text("2\n1 2 3 -20 10 20 30\n4 5 6 7 40 50 60\n")
    cloud = read_points(tmp_path / "a.pts")  # Leica: x y z intensity r g b
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[10, 20, 30], [40, 50, 60]]
    (tmp_path / "n.xyz").write_text("1 2 3 0.5 0.5 -0.7\n")
    with pytest.raises(ValueError, match="cannot tell the 6 columns; pass columns="):
        read_points(tmp_path / "n.xyz")
    assert sorted(read_points(tmp_path / "n.xyz", columns="x y z nx ny nz").extra) == ["nx", "ny", "nz"]
    (tmp_path / "e.csv").write_text("x,y,z\n")
    assert len(read_points(tmp_path / "e.csv")) == 0


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<i4"])
def test_npy_round_trip(tmp_path: Path, dtype: str) -> None:
    rows = np.random.default_rng(5).normal(0, 30, (N, 3)).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(rows))
    assert np.array_equal(read_points(tmp_path / "a.npy").xyz.numpy(), rows.astype(np.float32))
    np.save(tmp_path / "s.npy", as_rows(street()))
    check_equal(read_points(tmp_path / "s.npy"), street())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path: Path, save: object) -> None:
    columns = street()
    others = {name: columns[name] for name in ("intensity", "label", "ring")}
    colors = np.random.default_rng(6).random((N, 3))
    save(tmp_path / "a.npz", points=xyz_of(columns).numpy(), colors=colors, about=np.arange(3), **others)  # type: ignore[operator]
    cloud = read_points(tmp_path / "a.npz")
    check_equal(cloud, columns)
    assert cloud.rgb is not None and np.array_equal(cloud.rgb.numpy(), np.rint(colors * 255))
    assert list(cloud.extra) == ["ring"]


def test_raw_layouts(tmp_path: Path) -> None:
    columns = street(1000)
    four = np.stack([columns[a] for a in ("x", "y", "z", "intensity")], axis=1)
    (tmp_path / "k.bin").write_bytes(four.tobytes())
    assert torch.equal(read_points(tmp_path / "k.bin").xyz, xyz_of(columns))
    five = np.column_stack([four, columns["ring"].astype(np.float32)])
    for name in ("n.bin", "n.pcd.bin"):  # 20 000 bytes: whole rows of 4 and of 5 numbers
        (tmp_path / name).write_bytes(five.tobytes())
        assert np.array_equal(read_points(tmp_path / name).extra["ring"].numpy(), columns["ring"].astype(np.float32))
    (tmp_path / "r.bin").write_bytes(np.column_stack([four[:, :3], np.full((1000, 3), 128, np.float32)]).tobytes())
    assert read_points(tmp_path / "r.bin").rgb is not None
    (tmp_path / "p.bin").write_bytes(np.abs(four[:, :3]).tobytes())  # also whole rows of 4, all numbers positive
    with pytest.raises(ValueError, match="pass columns="):
        read_points(tmp_path / "p.bin")
    assert len(read_points(tmp_path / "p.bin", columns="x y z")) == 1000
    (tmp_path / "z.bin").write_bytes(bytes(4 * 20))
    with pytest.raises(ValueError, match="several fit"):
        read_points(tmp_path / "z.bin")


def test_empty_bin_is_an_empty_cloud(tmp_path: Path) -> None:
    for name in ("a.bin", "a.pcd.bin"):
        (tmp_path / name).touch()
        cloud = read_points(tmp_path / name)
        assert len(cloud) == 0 and cloud.intensity is not None
    for name in ("a.pcd", "a.ply", "a.las", "a.npy", "a.npz", "a.txt"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=name):
            read_points(tmp_path / name)


def test_semantic_kitti_labels(tmp_path: Path) -> None:
    columns = street()
    four = np.stack([columns[a] for a in ("x", "y", "z", "intensity")], axis=1)
    (tmp_path / "a.bin").write_bytes(four.tobytes())
    packed = columns["label"] | np.arange(N, dtype=np.uint32) << 16
    (tmp_path / "a.label").write_bytes(packed.astype("<u4").tobytes())
    cloud = read_points(tmp_path / "a.bin", labels=tmp_path / "a.label")
    assert cloud.labels is not None and np.array_equal(cloud.labels.numpy(), columns["label"])
    assert cloud.extra["instance"].tolist() == list(range(N))
    (tmp_path / "short.label").write_bytes(packed[:-1].tobytes())
    with pytest.raises(ValueError, match=rf"short\.label: expected {N} labels"):
        read_points(tmp_path / "a.bin", labels=tmp_path / "short.label")
    (tmp_path / "seg.bin").write_bytes(columns["label"].astype(np.uint8).tobytes())
    seen = read_points(tmp_path / "a.bin", labels=tmp_path / "seg.bin").labels
    assert seen is not None and np.array_equal(seen.numpy(), columns["label"])


@pytest.mark.parametrize(
    ("name", "n", "parts"),
    [
        ("kitti_000008.bin", 17238, ["intensity"]),
        ("nuscenes_lidar_top.pcd.bin", 34688, ["intensity"]),
        ("scannet_scene0000_00.bin", 40684, ["rgb"]),
        ("benchmark-pc.npz", 198130, []),
    ],
)
def test_real_files(data_dir: Path, name: str, n: int, parts: list[str]) -> None:
    cloud = read_points(data_dir / "pointcloud" / name)
    assert len(cloud) == n
    assert [p for p in ("intensity", "rgb", "labels") if getattr(cloud, p) is not None] == parts
    assert cloud.xyz.abs().max() < 120


def test_real_sweep_has_the_same_columns_without_its_suffix(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "pointcloud" / "nuscenes_lidar_top.pcd.bin"
    (tmp_path / "sweep.bin").write_bytes(source.read_bytes())
    assert torch.equal(read_points(tmp_path / "sweep.bin").extra["ring"], read_points(source).extra["ring"])
    with pytest.raises(ValueError, match="not whole rows of 5"):
        (tmp_path / "cut.pcd.bin").write_bytes(source.read_bytes()[:-4])
        read_points(tmp_path / "cut.pcd.bin")


# --- what is wrong with a file is said ----------------------------------------------------------------------------


def test_invalid_points(tmp_path: Path) -> None:
    columns = street()
    columns["y"][3], columns["z"][5], columns["intensity"][7] = np.nan, np.inf, np.nan
    for data in ("ascii", "binary", "binary_compressed"):
        (tmp_path / "a.pcd").write_bytes(pcd_bytes(columns, data))
        with pytest.raises(ValueError, match=rf"a\.pcd: 3 of {N} points .* pass invalid='drop'"):
            read_points(tmp_path / "a.pcd")
        kept = np.delete(np.arange(N), [3, 5, 7])
        check_equal(read_points(tmp_path / "a.pcd", invalid="drop"), {k: c[kept] for k, c in columns.items()})
    (tmp_path / "big.xyz").write_text("1 2 1e300\n")
    with pytest.raises(ValueError, match="1 of 1 points"):
        read_points(tmp_path / "big.xyz")


def test_missing_directory_unknown(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ply"):
        read_points(tmp_path / "none.ply")
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.ply"):
        read_points(tmp_path / "folder.ply")
    (tmp_path / "a.stl").write_text("solid a")
    with pytest.raises(ValueError, match=r"a\.stl: unknown suffix '\.stl'; expected one of .*\.pcd \.ply"):
        read_points(tmp_path / "a.stl")
    with pytest.raises(ValueError, match="format must be one of kitti"):
        read_points(tmp_path / "a.stl", format="stl")
    with pytest.raises(ValueError, match="invalid must be"):
        read_points(tmp_path / "a.stl", invalid="keep")
    (tmp_path / "a.ply").write_bytes(ply_bytes(street(), "ascii"))
    with pytest.raises(ValueError, match="columns does not apply"):
        read_points(tmp_path / "a.ply", columns="x y z")
    for columns in ("x y", "x y z x", ["x", "y", "y", "z"]):
        with pytest.raises(ValueError, match="columns must name x, y and z"):
            read_points(tmp_path / "a.ply", columns=columns)


@pytest.mark.parametrize(
    "suffix", ["bin", "pcd.bin", "pcd", "ply", "las", "laz", "npy", "npz", "txt", "csv", "obj", "off", "e57", "pcap"]
)
@pytest.mark.parametrize("head", [b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<html>hello", bytes(range(256)), b"\n", b"{}"])
def test_not_a_cloud(tmp_path: Path, suffix: str, head: bytes) -> None:
    if suffix.startswith("la"):
        pytest.importorskip("laspy")
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(head + b"\x01\x80\x90\xff" * 101)
    with pytest.raises(ValueError, match=r"a\."):
        read_points(path)


def test_error_says_what_came(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=r"expected a PLY file .* got a PNG image"):
        read_points(tmp_path / "a.ply")
    (tmp_path / "a.pcd").write_bytes(ply_bytes(street(), "ascii"))
    with pytest.raises(ValueError, match=r"got a PLY cloud \(format='ply'\)"):
        read_points(tmp_path / "a.pcd")
    assert len(read_points(tmp_path / "a.pcd", format="ply")) == N


HUGE = 10**12


def hostile() -> dict[str, bytes]:
    columns = street(3)
    packed = lzf_compress(b"".join(c.tobytes() for c in columns.values()))
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    npy += f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE}, 3), }}".encode().ljust(117) + b"\n"
    return {
        "ascii.pcd": pcd_header(columns, "ascii", HUGE) + ascii_rows(columns),
        "binary.pcd": pcd_header(columns, "binary", HUGE) + as_rows(columns).tobytes(),
        "packed.pcd": pcd_header(columns, "binary_compressed", HUGE)
        + struct.pack("<II", len(packed), 2**32 - 1) + packed,
        "grown.pcd": pcd_header({"x": columns["x"], "y": columns["y"], "z": columns["z"]}, "binary_compressed", 2**28)
        + struct.pack("<II", len(packed), 2**28 * 12) + packed,
        "ascii.ply": ply_bytes(columns, "ascii").replace(b"vertex 3", b"vertex %d" % HUGE),
        "binary.ply": ply_bytes(columns, "binary_little_endian").replace(b"vertex 3", b"vertex %d" % HUGE),
        "before.ply": ply_bytes(columns, "binary_big_endian", f"element a {HUGE}\nproperty list uint double b"),
        "jump.ply": ply_bytes(columns, "binary_big_endian", f"element a {10**17}\nproperty double b"),
        "shape.npy": npy + bytes(100),
        "count.pts": f"{HUGE}\n1 2 3\n".encode(),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(hostile()))
def test_huge_claims_allocate_nothing(tmp_path: Path, name: str) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / name).write_bytes(hostile()[name])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), limits[1]))
    try:
        with pytest.raises(ValueError, match=name):
            read_points(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_las_with_a_huge_claim(tmp_path: Path, suffix: str) -> None:
    _, path = write_las(tmp_path / f"a.{suffix}", N)
    content = bytearray(path.read_bytes())
    content[247:255] = struct.pack("<Q", HUGE)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.la"):
        read_points(path)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("a pickle was loaded",))

    np.save(tmp_path / "a.npy", np.array([Trap()] * 3, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", points=np.array([Trap()] * 3, dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match="Python objects, which are never loaded"):
            read_points(tmp_path / name)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="expected a NumPy array"):
        read_points(tmp_path / "b.npy")


def test_npz_that_claims_too_much(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("points.npy", bytes(100))
    with pytest.raises(ValueError, match="stored or deflated"):
        read_points(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", label=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected an array named points.* got label"):
        read_points(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"SIZE 4", b"SIZE 3", "unknown type F of 3"),
        (b"TYPE F", b"TYPE Q", "unknown type Q of 4"),
        (b"FIELDS x y", b"FIELDS x x", "must be distinct"),
        (b"WIDTH 137", b"WIDTH 136", "POINTS must be WIDTH x HEIGHT"),
        (b"WIDTH 137", b"WIDTH -7", "WIDTH must be a whole number"),
        (b"COUNT 1 1", b"COUNT 1", "COUNT must hold 6 values"),
        (b"DATA binary", b"DATA zipped", "DATA must be ascii"),
        (b"HEIGHT", b"HIGHT", "header line"),
        (b"FIELDS x", b"FIELDS q", "columns x, y and z"),
    ],
)
def test_pcd_header_errors(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    content = pcd_bytes(street(), "binary")
    assert old in content
    (tmp_path / "a.pcd").write_bytes(content.replace(old, new))
    with pytest.raises(ValueError, match=rf"a\.pcd: .*{message}"):
        read_points(tmp_path / "a.pcd")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"float x", b"half x", "property TYPE NAME"),
        (b"float x", b"float y", "each property of vertex once"),
        (b"element vertex", b"element corner", "expected one element 'vertex'"),
        (b"vertex 137", b"vertex 1.5", "expected format, element"),
        (b"vertex 137", b"vertex 136", "bytes follow"),
        (b"vertex 137", b"vertex 138", "truncated"),
        (b"binary_little_endian", b"binary_middle_endian", "a format among"),
        (b"property ushort ring", b"property list uchar int ring", "truncated inside"),
    ],
)
def test_ply_header_errors(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    content = ply_bytes(street(), "binary_little_endian")
    assert old in content
    (tmp_path / "a.ply").write_bytes(content.replace(old, new))
    with pytest.raises(ValueError, match=rf"a\.ply: .*{message}"):
        read_points(tmp_path / "a.ply")


def test_ascii_values_that_do_not_fit(tmp_path: Path) -> None:
    head = "ply\nformat ascii 1.0\nelement vertex 1\n" + "".join(f"property float {a}\n" for a in "xyz")
    (tmp_path / "a.ply").write_text(head + "property uchar red\nend_header\n1 2 3 300\n")
    with pytest.raises(ValueError, match="red must fit uint8, got 300"):
        read_points(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_text(head + "end_header\n1 2 three\n")
    with pytest.raises(ValueError, match=r"a\.ply: expected 1 rows of 3 numbers"):
        read_points(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_text(head + "end_header\n1 2 3\n4 5 6\n")
    with pytest.raises(ValueError, match="claims 1 points, the file holds more"):
        read_points(tmp_path / "a.ply")


def test_laspy_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.las").write_bytes(b"LASF" + bytes(400))
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(ImportError, match=r"trisparse\[pointcloud\]"):
        read_points(tmp_path / "a.las")


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SAMPLES))
def test_every_truncation_is_noticed(tmp_path: Path, name: str) -> None:
    content, columns = SAMPLES[name](), street(40)
    check_equal(read_points(put(tmp_path / name, content)), columns)
    for length in range(len(content)):
        cloud = read_or_none(put(tmp_path / name, content[:length]))
        assert cloud is None, f"{length} of {len(content)} bytes were read as {cloud}"


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_las_truncation(tmp_path: Path, suffix: str) -> None:
    _, path = write_las(tmp_path / f"a.{suffix}", N)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        assert read_or_none(put(path, content[:length])) is None, f"{length} of {len(content)} bytes"


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_numpy_truncation(tmp_path: Path, save: object) -> None:
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, np.random.default_rng(0).random((9, 3)))  # type: ignore[operator]
    content = path.read_bytes()
    for length in range(len(content)):
        assert read_or_none(put(path, content[:length])) is None, f"{length} of {len(content)} bytes"


# --- PointCloud ---------------------------------------------------------------------------------------------------


def test_point_cloud_checks_its_columns() -> None:
    xyz = torch.zeros(4, 3)
    for bad, message in (
        ({"xyz": torch.zeros(4, 3).double()}, r"xyz must be float32 \[N, 3\], got float64 \[4, 3\]"),
        ({"xyz": torch.zeros(4, 4)}, r"xyz must be float32 \[N, 3\]"),
        ({"intensity": torch.zeros(3)}, r"intensity must be float32 \[N\] = \[4\], got float32 \[3\]"),
        ({"rgb": torch.zeros(4, 3)}, "rgb must be uint8"),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, "labels must be int64"),
        ({"extra": {"t": torch.zeros(5)}}, r"extra\['t'\] must be a tensor \[N, ...\] with N = 4"),
        ({"origin": torch.zeros(3)}, "origin must be float64"),
    ):
        with pytest.raises(ValueError, match=message):
            PointCloud(**({"xyz": xyz} | bad))  # type: ignore[arg-type]


def test_point_cloud_select_and_features() -> None:
    columns = street()
    cloud = PointCloud(
        xyz_of(columns),
        torch.from_numpy(columns["intensity"]),
        labels=torch.arange(N),
        extra={"ring": torch.from_numpy(columns["ring"].astype(np.int32))},
    )
    index = torch.tensor([5, 0, 5])
    part = cloud.select(index)
    assert part.labels is not None and part.labels.tolist() == [5, 0, 5]
    assert torch.equal(part.xyz, cloud.xyz[index]) and torch.equal(part.extra["ring"], cloud.extra["ring"][index])
    assert len(cloud.select(torch.zeros(N, dtype=torch.bool))) == 0
    features = cloud.features("x", "y", "z", "intensity", "ring")
    assert features.shape == (N, 5) and torch.equal(features[:, 4], cloud.extra["ring"].float())
    with pytest.raises(ValueError, match="names must be among x, y, z, intensity, ring, got red"):
        cloud.features("x", "red")
    for bad, error in ((torch.tensor([N]), IndexError), (torch.tensor([-1]), IndexError), (torch.zeros(3), ValueError)):
        with pytest.raises(error, match="index must"):
            cloud.select(bad)
    with pytest.raises(ValueError, match=f"N = {N}"):
        cloud.select(torch.ones(3, dtype=torch.bool))
    assert torch.equal(pickle.loads(pickle.dumps(cloud)).extra["ring"], cloud.extra["ring"])
    assert len(cloud.to("cpu")) == N
