"""Clouds read block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointcloud.io.blocks import read_blocks

ROWS = np.random.default_rng(0).random((25, 5)).astype(np.float32)


def _all(reader: Any, size: int) -> np.ndarray:
    blocks = list(reader.blocks(size))
    assert all(len(block) == size for block in blocks[:-1]) and sum(map(len, blocks)) == reader.n_points
    return np.concatenate(blocks)


@pytest.mark.parametrize("size", [1, 7, 25, 100])
def test_blocks_are_the_rows(tmp_path: Path, size: int) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    np.save(tmp_path / "b.npy", ROWS.astype(">f8"))
    ROWS.tofile(tmp_path / "c.bin")
    cases = (
        read_blocks(tmp_path / "a.npy"),
        read_blocks(tmp_path / "b.npy"),
        read_blocks(tmp_path / "c.bin", columns=5),
    )
    for reader in (*cases, read_blocks(ROWS), read_blocks(torch.from_numpy(ROWS)), read_blocks(ROWS[:, ::-1][:, ::-1])):
        assert (reader.n_points, reader.columns) == ROWS.shape
        found = _all(reader, size)
        assert found.dtype == reader.dtype and reader.dtype.isnative and np.array_equal(found, ROWS)


def test_las(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    las.header.scales = [0.01] * 3
    las.x, las.y, las.z = (np.round(ROWS[:, :3], 2) * 100).T
    las.intensity = np.arange(25)
    las.write(str(tmp_path / "a.las"))
    reader = read_blocks(tmp_path / "a.las", extra=["intensity"])
    assert reader.columns == 4 and np.array_equal(_all(reader, 10)[:, 3], np.arange(25))
    assert np.allclose(_all(reader, 10)[:, :3], np.round(ROWS[:, :3], 2) * 100, atol=0.006)
    with pytest.raises(ValueError, match="extra must name dimensions of the file .* got 'colour'"):
        read_blocks(tmp_path / "a.las", extra=["colour"])


def test_errors(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    ROWS.tofile(tmp_path / "c.bin")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-3])
    (tmp_path / "no.npy").write_bytes(b"hello, world")
    np.save(tmp_path / "f.npy", np.asfortranarray(ROWS))
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (tmp_path / "a.xyz", {}, "clouds are read in blocks from .npy, .bin, .las, .laz files"),
        (tmp_path / "a.npy", {"columns": 5}, "columns= belongs to .bin files"),
        (tmp_path / "a.npy", {"extra": ["intensity"]}, "extra= belongs to LAS files"),
        (tmp_path / "c.bin", {}, "columns must say how many numbers a row of the file has"),
        (tmp_path / "c.bin", {"columns": "velodyne"}, "columns must be a number, names or one of kitti"),
        (tmp_path / "c.bin", {"columns": ["x", "z", "y"]}, "columns must begin with x, y and z"),
        (tmp_path / "c.bin", {"columns": 4}, r"500 bytes are no whole rows of 4 float32 numbers"),
        (tmp_path / "cut.npy", {}, "truncated"),
        (tmp_path / "no.npy", {}, "expected a NumPy array"),
        (tmp_path / "f.npy", {}, "Fortran"),
        (ROWS[:, :2], {}, r"source must be \[N, C\] with x, y and z first, got float32 \[25, 2\]"),
    ]
    for source, options, message in cases:
        with pytest.raises(ValueError, match=message):
            read_blocks(source, **options)
    for wrong in (tmp_path / "o.npy", ROWS.astype(np.int32)):
        with pytest.raises(TypeError, match="must hold float32 or float64"):
            read_blocks(wrong)
    with pytest.raises(FileNotFoundError):
        read_blocks(tmp_path / "none.npy")
