"""PCD as PCL reads it, and as other programs write it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pointcloud.io import read_points
from tests.pointcloud.cloud_files import pcd_header, put


@pytest.mark.parametrize("text", ["4.2108e+06", "4210752", "4210752.0", "9.5e-39", "2.3509886e-38", "16711680", "0"])
def test_a_colour_of_type_f_is_the_float_of_its_bits(tmp_path: Path, text: str) -> None:
    header = pcd_header({name: np.zeros(1, np.float32) for name in ("x", "y", "z", "rgb")}, "ascii")
    cloud = read_points(put(tmp_path / "a.pcd", header + f"1 2 3 {text}\n".encode()))
    bits = struct.unpack("<I", struct.pack("<f", float(text)))[0]
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[bits >> 16 & 255, bits >> 8 & 255, bits & 255]]


@pytest.mark.parametrize("kind", [np.uint32, np.int32])
def test_a_colour_of_a_whole_type_is_the_number(tmp_path: Path, kind: type) -> None:
    columns = {name: np.zeros(2, np.float32) for name in "xyz"} | {"rgb": np.zeros(2, kind)}
    second = 4278190335 if kind is np.uint32 else 4278190335 - 2**32
    content = pcd_header(columns, "ascii") + f"1 2 3 4210752\n4 5 6 {second}\n".encode()
    cloud = read_points(put(tmp_path / "a.pcd", content))
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[64, 64, 64], [0, 0, 255]]


@pytest.mark.parametrize("between", [",", ", ", " , "])
def test_commas(tmp_path: Path, between: str) -> None:
    header = pcd_header({name: np.zeros(2, np.float32) for name in ("x", "y", "z", "intensity")}, "ascii")
    rows = "\n".join(between.join(row) for row in (["1.5", "-2", "3e0", "7"], ["4", "5", "6", "8"]))
    cloud = read_points(put(tmp_path / "a.pcd", header + rows.encode() + b"\n"))
    assert cloud.xyz.tolist() == [[1.5, -2, 3], [4, 5, 6]]
    assert cloud.intensity is not None and cloud.intensity.tolist() == [7, 8]
    with pytest.raises(ValueError, match=r"b\.pcd: "):
        read_points(put(tmp_path / "b.pcd", header + b"1,2,3\n4,5,6\n"))
