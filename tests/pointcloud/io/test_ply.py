"""PLY with lists in the vertices, and with a blank after the magic word."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pointcloud.io import read_points
from tests.pointcloud.cloud_files import put

ROWS = [(1.5, [], 2.0, 3.0, 7, [4, 5]), (-4.0, [9], 5.0, 6.0, 8, []), (7.0, [1, 2, 3], 8.0, 9.0, 255, [1])]


def ply(order: str, faces: bool = False, magic: bytes = b"ply\n") -> bytes:
    """Three vertices: x, a list, y, z, label, another list."""
    header = (
        f"format {order} 1.0\nelement vertex {len(ROWS)}\nproperty float x\nproperty list uchar short near\n"
        "property float y\nproperty double z\nproperty uchar label\nproperty list int uint parts\n"
        + ("element face 1\nproperty list uchar int vertex_indices\n" if faces else "")
        + "end_header\n"
    ).encode()
    sign = "<" if "little" in order else ">"
    body = b""
    for x, near, y, z, label, parts in ROWS:
        if order == "ascii":
            words = [x, len(near), *near, y, z, label, len(parts), *parts]
            body += " ".join(str(word) for word in words).encode() + b"\n"
        else:
            form = f"{sign}fB{len(near)}hfdBi{len(parts)}I"
            body += struct.pack(form, x, len(near), *near, y, z, label, len(parts), *parts)
    if faces:
        body += b"3 0 1 2\n" if order == "ascii" else struct.pack(sign + "B3i", 3, 0, 1, 2)
    return magic + header + body


@pytest.mark.parametrize("faces", [False, True])
@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_lists_of_vertices_are_left_out(tmp_path: Path, order: str, faces: bool) -> None:
    content = ply(order, faces)
    cloud = read_points(put(tmp_path / "a.ply", content))
    assert cloud.xyz.tolist() == [[row[0], row[2], row[3]] for row in ROWS]
    assert cloud.labels is not None and cloud.labels.tolist() == [7, 8, 255] and not cloud.extra
    if not faces:
        for cut in range(content.index(b"end_header") + 11, len(content) - (2 if order == "ascii" else 0)):
            with pytest.raises(ValueError, match=r"c\.ply"):
                read_points(put(tmp_path / "c.ply", content[:cut]))
        with pytest.raises(ValueError, match="claims 3 vertices"):
            read_points(put(tmp_path / "c.ply", content + b"1\n"))
    huge = content.replace(b"vertex 3", b"vertex %d" % 10**15)
    with pytest.raises(ValueError, match="claims 1000000000000000 vertices"):
        read_points(put(tmp_path / "h.ply", huge))


@pytest.mark.parametrize("magic", [b"ply \n", b"ply\t\r\n", b"ply  \n"])
def test_blank_after_the_magic_word(tmp_path: Path, magic: bytes) -> None:
    assert len(read_points(put(tmp_path / "a.ply", ply("binary_little_endian", magic=magic)))) == 3
