"""Files of every format inside gzip."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from pointcloud.io import read_points
from tests.pointcloud.cloud_files import SAMPLES, put, street


@pytest.mark.parametrize("name", list(SAMPLES))
def test_inside_is_read(tmp_path: Path, name: str) -> None:
    plain = put(tmp_path / name, SAMPLES[name]())
    packed = put(tmp_path / f"{name}.gz", gzip.compress(SAMPLES[name]()))
    assert torch.equal(read_points(packed).xyz, read_points(plain).xyz)
    assert torch.equal(read_points(put(tmp_path / f"other.{name}", packed.read_bytes())).xyz, read_points(plain).xyz)


def test_rows_without_a_header_and_arrays(tmp_path: Path) -> None:
    four = np.stack([street(900)[a] for a in ("x", "y", "z", "intensity")], axis=1)
    packed = put(tmp_path / "a.bin.gz", gzip.compress(four.astype(np.float16).tobytes()))
    assert np.array_equal(read_points(packed, "kitti", dtype="float16").xyz.numpy(), four[:, :3].astype(np.float16))
    np.save(tmp_path / "a.npy", four)
    read = read_points(put(tmp_path / "a.npy.gz", gzip.compress((tmp_path / "a.npy").read_bytes())))
    assert np.array_equal(read.xyz.numpy(), four[:, :3])


def test_errors_name_the_packed_file(tmp_path: Path) -> None:
    content = gzip.compress(SAMPLES["ascii.pcd"]())
    for cut in (4, len(content) // 2, len(content) - 1):
        with pytest.raises(ValueError, match=r"a\.pcd\.gz: corrupt or truncated gzip"):
            read_points(put(tmp_path / "a.pcd.gz", content[:cut]))
    with pytest.raises(ValueError) as refused:
        read_points(put(tmp_path / "b.ply.gz", gzip.compress(b"\x89PNG\r\n\x1a\n")))
    assert str(refused.value).startswith(f"{tmp_path / 'b.ply.gz'}: expected a PLY file")
    pointer = gzip.compress(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"c\.ply\.gz: a Git LFS pointer"):
        read_points(put(tmp_path / "c.ply.gz", pointer))
    with pytest.raises(ValueError, match="unknown suffix '.tar'"):
        read_points(put(tmp_path / "d.tar.gz", content))


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointcloud.io.gz._ALWAYS", 1 << 16)
    path = put(tmp_path / "a.bin.gz", gzip.compress(bytes(1 << 24)))
    with pytest.raises(ValueError, match="which no cloud does"):
        read_points(path)
