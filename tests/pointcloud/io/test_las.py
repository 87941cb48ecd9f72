"""LAS dimensions whose names differ only in case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointcloud.io import read_points

laspy = pytest.importorskip("laspy")


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_extra_dimension_with_the_name_of_a_standard_one(tmp_path: Path, suffix: str) -> None:
    header = laspy.LasHeader(point_format=3, version="1.2")
    for name in ("Intensity", "RED", "extra_intensity"):
        header.add_extra_dim(laspy.ExtraBytesParams(name=name, type=np.float32))
    las = laspy.LasData(header)
    las.x, las.y, las.z = np.arange(5.0), np.arange(5.0), np.arange(5.0)
    las.intensity = np.arange(5) * 100
    for i, name in enumerate(("Intensity", "RED", "extra_intensity")):
        las[name] = np.full(5, i + 0.5, np.float32)
    las.write(str(tmp_path / f"a.{suffix}"))
    cloud = read_points(tmp_path / f"a.{suffix}")
    assert cloud.intensity is not None and cloud.intensity.tolist() == [0, 100, 200, 300, 400]
    found = {name: float(column[0]) for name, column in cloud.extra.items() if name.startswith("extra_")}
    assert sorted(found.values()) == [0.5, 1.5, 2.5] and found["extra_red"] == 1.5 and len(found) == 3
