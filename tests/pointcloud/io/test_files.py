"""What is no file of its format is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointcloud.io import SUFFIXES, read_points
from tests.pointcloud.cloud_files import put

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 132735\n"


@pytest.mark.parametrize("suffix", list(SUFFIXES))
def test_git_lfs_pointers_are_named_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path / f"a{suffix}", POINTER)
    with pytest.raises(ValueError, match="a Git LFS pointer, not the file itself"):
        read_points(path)


def test_git_lfs_pointer_of_labels(tmp_path: Path) -> None:
    put(tmp_path / "a.xyz", b"1 2 3\n")
    with pytest.raises(ValueError, match=r"a\.label: a Git LFS pointer"):
        read_points(tmp_path / "a.xyz", labels=put(tmp_path / "a.label", POINTER))
