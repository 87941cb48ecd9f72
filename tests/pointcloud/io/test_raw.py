"""Files without a header: what is no cloud is not called one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pointcloud.io import read_points

N = 1500


def sweep(n: int = N) -> np.ndarray:
    """float32 [n, 4]: a turn of 16 beams over a street, with an intensity."""
    rng = np.random.default_rng(4)
    angle, beam = np.linspace(0, 2 * np.pi, n), np.radians(rng.integers(-15, 2, n))
    distance = np.minimum(1.8 / np.maximum(-np.sin(beam), 0.03), rng.uniform(4, 70, n))
    axes = [distance * np.cos(beam) * np.cos(angle), distance * np.cos(beam) * np.sin(angle), distance * np.sin(beam)]
    return np.stack([*axes, rng.random(n)], axis=1).astype(np.float32)


def room(n: int = N) -> np.ndarray:
    """float32 [n, 4]: numbers from 0 to 8."""
    return np.random.default_rng(5).uniform(0, 8, (n, 4)).astype(np.float32)


def put(path: Path, array: np.ndarray) -> Path:
    path.write_bytes(array.tobytes())
    return path


@pytest.mark.parametrize("options", [{}, {"format": "kitti"}, {"columns": "x y z"}])
@pytest.mark.parametrize(("high", "runs"), [(2, 60), (20, 1), (200, 60)])
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i4", "<i8", ">i4"])
def test_labels_are_no_cloud(tmp_path: Path, dtype: str, high: int, runs: int, options: dict[str, str]) -> None:
    labels = np.repeat(np.random.default_rng(high).integers(0, high, 12000 // runs), runs).astype(dtype)
    with pytest.raises(ValueError, match=r"a\.bin: "):
        read_points(put(tmp_path / "a.bin", labels), **options)


def test_labels_whose_bits_are_moderate_numbers_are_no_cloud(tmp_path: Path) -> None:
    labels = np.repeat(np.random.default_rng(0).choice([0, 65, 66], 500).astype("u1"), 96)
    with pytest.raises(ValueError, match="x, y and z are equal"):
        read_points(put(tmp_path / "a.bin", labels), "kitti")
    with pytest.raises(ValueError, match="no cloud"):
        read_points(put(tmp_path / "a.bin", np.full(12000, 255, "u1")), "kitti", invalid="drop")
    with pytest.raises(ValueError, match="within a millimetre"):
        read_points(put(tmp_path / "a.bin", np.arange(12000, dtype="<u2") % 20), columns="x y z", dtype="float16")


@pytest.mark.parametrize("options", [{}, {"format": "kitti"}, {"columns": "x y z _"}, {"columns": "x y z"}])
@pytest.mark.parametrize("cloud", [sweep, room])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8"])
def test_other_numbers_are_refused_and_named(
    tmp_path: Path, cloud: object, dtype: str, options: dict[str, str]
) -> None:
    rows = cloud().astype(dtype)  # type: ignore[operator]
    path = put(tmp_path / "a.bin", rows)
    with pytest.raises(ValueError, match=r"a\.bin: ") as refused:
        read_points(path, **options)
    assert f"dtype='{np.dtype(dtype).name}'" in str(refused.value)
    assert ("byte_order='big'" in str(refused.value)) == (dtype[0] == ">")
    order = "big" if dtype[0] == ">" else "little"
    read = read_points(path, "kitti", dtype=np.dtype(dtype).name, byte_order=order)
    assert np.array_equal(read.xyz.numpy(), rows[:, :3].astype(np.float32))
    assert read.intensity is not None and np.array_equal(read.intensity.numpy(), rows[:, 3].astype(np.float32))


@pytest.mark.parametrize("wrong", ["float16", "float64"])
def test_a_wrong_dtype_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match="dtype='float32'"):
        read_points(put(tmp_path / "a.bin", sweep()), "kitti", dtype=wrong)


def test_whole_numbers_of_millimetres(tmp_path: Path) -> None:
    rows = np.rint(sweep()[:, :3] * 100).astype("<i2")
    cloud = read_points(put(tmp_path / "a.bin", rows), columns="x y z", dtype="int16")
    assert np.array_equal(cloud.xyz.numpy(), rows.astype(np.float32))


def test_round_numbers_of_eight_bytes_are_refused(tmp_path: Path) -> None:
    """Their lower halves are zeros, and their upper halves ordinary floats."""
    rows = np.random.default_rng(5).integers(-160, 160, (2000, 4)) / 8
    rows[:, 3] = np.abs(rows[:, 3]) // 20
    rows.tofile(tmp_path / "x.bin")
    with pytest.raises(ValueError, match="every other number is 0.*dtype='float64'"):
        read_points(tmp_path / "x.bin")
    cloud = read_points(tmp_path / "x.bin", columns="x y z intensity", dtype="float64")
    np.testing.assert_allclose(cloud.xyz.numpy(), rows[:, :3])


def test_presets(tmp_path: Path) -> None:
    four = sweep()
    rng = np.random.default_rng(1)
    waymo = np.column_stack([four, rng.uniform(0, 1.5, N), rng.integers(-1, 2, N)]).astype(np.float32)
    cloud = read_points(put(tmp_path / "w.bin", waymo), "waymo")
    assert torch.equal(cloud.extra["elongation"], torch.from_numpy(waymo[:, 4]))
    assert torch.equal(cloud.extra["aux"], torch.from_numpy(waymo[:, 5]))
    colours = rng.random((N, 3))
    for scale, dtype in ((1, "float32"), (1, "float16")):
        rows = np.column_stack([four[:, :3], colours * scale]).astype(dtype)
        cloud = read_points(put(tmp_path / "s.bin", rows), "sunrgbd", dtype=dtype)
        assert cloud.rgb is not None and np.abs(cloud.rgb.numpy() - colours * 255).max() < 1
    with pytest.raises(ValueError, match="not colours"):
        read_points(put(tmp_path / "s.bin", waymo), "sunrgbd")
    coloured = np.column_stack([four[:, :3], rng.integers(0, 256, (N, 3))]).astype(np.float32)
    with pytest.raises(ValueError, match="not an elongation"):
        read_points(put(tmp_path / "w.bin", coloured), "waymo")


@pytest.mark.parametrize("extra", [1, 2, 3])
def test_kitti_forced_on_longer_rows(tmp_path: Path, extra: int) -> None:
    rows = np.column_stack([sweep(), np.arange(N * extra).reshape(N, extra) % 32]).astype(np.float32)
    path = put(tmp_path / "a.bin", rows[: N // 4 * 4])
    with pytest.raises(ValueError, match=rf"not rows of 4 .* rows of {4 + extra}"):
        read_points(path, "kitti")
    with pytest.raises(ValueError, match=rf"not rows of 4 .* rows of {4 + extra}"):
        read_points(path, columns="x y z intensity")


def test_arguments(tmp_path: Path) -> None:
    path = put(tmp_path / "a.bin", sweep())
    with pytest.raises(ValueError, match="dtype must be one of float16"):
        read_points(path, dtype="half")
    with pytest.raises(ValueError, match="byte_order must be one of little, big"):
        read_points(path, byte_order=">")
    np.save(tmp_path / "a.npy", sweep())
    for option in ({"dtype": "float16"}, {"byte_order": "big"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} does not apply"):
            read_points(tmp_path / "a.npy", **option)


@pytest.mark.parametrize("kind", ["plane", "line", "noise", "duplicates", "far"])
def test_unusual_clouds_are_clouds(tmp_path: Path, kind: str) -> None:
    rows = sweep()[:, :3].copy()
    if kind == "plane":
        rows[:, 2] = np.random.default_rng(2).normal(0, 1e-16, N)
    elif kind == "line":
        rows[:, 1:] = 0
    elif kind == "noise":
        rows[::3, 0] = 0
    elif kind == "duplicates":
        rows[: N // 2] = rows[0]
    else:
        rows += (4.5e5, 5.4e6, 300)
    assert len(read_points(put(tmp_path / "a.bin", rows), columns="x y z")) == N


def test_forced_on_the_wrong_data_set(data_dir: Path) -> None:
    folder = data_dir / "pointcloud"
    with pytest.raises(ValueError, match="not rows of 4"):
        read_points(folder / "nuscenes_lidar_top.pcd.bin", "kitti")
    with pytest.raises(ValueError, match="not rows of 4"):
        read_points(folder / "scannet_scene0000_00.bin", "kitti")
    assert len(read_points(folder / "kitti_000008.bin", "kitti")) == 17238
