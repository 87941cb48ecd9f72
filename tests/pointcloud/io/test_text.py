"""Rows of text without names: scanners' intensities and deep colours."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointcloud.io import read_points


@pytest.mark.parametrize("suffix", ["pts", "txt", "xyz", "csv"])
def test_deep_colours_and_negative_intensities(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text("1 2 3 -2048 256 65535 512\n4 5 6 2047 0 25600 767\n")
    cloud = read_points(path)
    assert cloud.intensity is not None and cloud.intensity.tolist() == [-2048, 2047]
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[1, 255, 2], [0, 100, 2]]
    path.write_text("1 2 3 256 65535 512\n4 5 6 0 25600 767\n")
    cloud = read_points(path)
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[1, 255, 2], [0, 100, 2]]
    path.write_text("1 2 3 -1205\n4 5 6 700\n")
    cloud = read_points(path)
    assert cloud.intensity is not None and cloud.intensity.tolist() == [-1205, 700]


@pytest.mark.parametrize("row", ["1 2 3 -0.5", "1 2 3 -2049", "1 2 3 70000 5 5", "1 2 3 300.5 5 5"])
def test_other_columns_are_not_guessed(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.txt").write_text(f"{row}\n" * 3)
    with pytest.raises(ValueError, match="cannot tell"):
        read_points(tmp_path / "a.txt")
