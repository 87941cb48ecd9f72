"""Vertices of .obj and .off files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointcloud.io import read_points


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_obj(tmp_path: Path) -> None:
    text = "# a cube\nmtllib a.mtl\no cube\nv 1 2 3\nvn 0 0 1\nv 4.5 \\\n -5 6e1 # here\nf 1//1 2//1 1//1\n"
    assert read_points(put(tmp_path / "a.obj", text)).xyz.tolist() == [[1, 2, 3], [4.5, -5, 60]]
    cloud = read_points(put(tmp_path / "c.obj", "v 1 2 3 1 0 0.2\nv 4 5 6 0 1 0\n"))
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[255, 0, 51], [0, 255, 0]]
    assert read_points(put(tmp_path / "w.obj", "v 1 2 3 1.0\n")).xyz.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "text",
    ["", "v 1 2\n", "v 1 2 x\n", "f 1 2 3\n", "hello\n", "v 1 2 3\nv 1 2 3 1 1 1\n", "v 1 2 3 4 5\n", "\0v 1 2 3\n"],
)
def test_obj_errors(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"a\.obj: "):
        read_points(put(tmp_path / "a.obj", text))


@pytest.mark.parametrize("head", ["OFF\n2 1 0\n", "OFF\n# two\n\n2 1 0\n", "OFF2 1 0\n", "OFF 2 1 0\n"])
def test_off(tmp_path: Path, head: str) -> None:
    path = put(tmp_path / "a.off", head + "1 2 3\n4 5 6.5\n3 0 1 0\n")
    assert read_points(path).xyz.tolist() == [[1, 2, 3], [4, 5, 6.5]]


def test_off_with_colours_and_normals(tmp_path: Path) -> None:
    cloud = read_points(put(tmp_path / "a.off", "COFF\n1 0 0\n1 2 3 255 128 0 255\n"))
    assert cloud.rgb is not None and cloud.rgb.tolist() == [[255, 128, 0]]
    assert read_points(put(tmp_path / "n.off", "NOFF\n1 0 0\n1 2 3 0 0 1\n")).xyz.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "text",
    ["", "OFF\n", "OFF\n2 0\n", "OFF\n-1 0 0\n", "OFF\n2 0 0\n1 2 3\n", "OFF\n1 0 0\n1 2\n", "OFF\n1 0 0\na b c\n",
     "4OFF\n", f"OFF\n{10**15} 0 0\n1 2 3\n", "OFF BINARY\n1 0 0\n"],
)  # fmt: skip
def test_off_errors(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"a\.off: "):
        read_points(put(tmp_path / "a.off", text))
