"""LAS dimensions whose names differ only in case, and the stream of LASzip before its version 2."""

from __future__ import annotations

import struct
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


def test_points_compressed_without_chunks(tmp_path: Path) -> None:
    """LASzip 1.2 wrote one stream without a table of chunks: made here of a file of one chunk."""
    las = laspy.LasData(laspy.LasHeader(point_format=1, version="1.2"))
    las.header.scales = [0.001] * 3
    world = np.random.default_rng(0).normal(0, 50, (3, 500)).round(3)
    las.x, las.y, las.z = world
    las.write(str(tmp_path / "a.laz"))
    content = bytearray((tmp_path / "a.laz").read_bytes())
    start = struct.unpack_from("<I", content, 96)[0]
    record = content.index(b"laszip encoded") + 52
    assert struct.unpack_from("<H", content, record)[0] == 2
    struct.pack_into("<H", content, record, 1)
    table = struct.unpack_from("<q", content, start)[0]
    (tmp_path / "old.laz").write_bytes(content[:start] + content[start + 8 : table])
    assert np.abs(read_points(tmp_path / "old.laz").xyz.numpy() - world.T).max() < 1e-4
