"""PLY files (Turk, 1994): ascii and binary of either byte order. Reads the element `vertex`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pointcloud.io.ascii_rows import read_rows
from pointcloud.io.columns import Array, Columns
from pointcloud.io.files import check_file, first_bytes
from pointcloud.io.ply_lists import read_without_lists

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_MAX_HEADER = 1 << 20


@dataclass
class _Element:
    name: str
    count: int
    # (name, type, type of the length or None where the property is one value)
    properties: list[tuple[str, str, str | None]]

    def has_list(self) -> bool:
        return any(length is not None for _, _, length in self.properties)

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(name, order + kind) for name, kind, _ in self.properties])


def _corrupt(path: Path, line: str, expected: str) -> ValueError:
    return ValueError(f"{path}: PLY header: expected {expected}, got {line[:60]!r}")


def _read_header(path: Path, file: BinaryIO) -> tuple[str, list[_Element]]:
    head = file.readline(16)
    if head.rstrip(b" \t\r\n") != b"ply" or not head.endswith((b"\n", b"\r")):
        file.seek(0)
        raise ValueError(f"{path}: expected a PLY file ('ply' on the first line), got {first_bytes(file.read(16))}")
    order = ""
    elements: list[_Element] = []
    while file.tell() < _MAX_HEADER:
        raw = file.readline(_MAX_HEADER)
        if not raw.endswith(b"\n"):
            raise ValueError(f"{path}: truncated: the file ends inside the PLY header, before 'end_header'")
        line = raw.decode("latin-1").strip()
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "end_header":
            if not order:
                raise _corrupt(path, line, "a line 'format ...'")
            return order, elements
        if words[0] == "format" and len(words) == 3 and not order:
            if words[1] not in _ORDERS:
                raise _corrupt(path, line, f"a format among {', '.join(_ORDERS)}")
            order = words[1]
        elif words[0] == "element" and len(words) == 3 and words[2].isdigit() and len(words[2]) <= 18:
            elements.append(_Element(words[1], int(words[2]), []))
        elif words[0] == "property" and elements:
            _add_property(path, elements[-1], line, words)
        else:
            raise _corrupt(path, line, "format, element, property, comment or end_header")
    raise ValueError(
        f"{path}: expected a PLY header that ends with 'end_header', found none in the first {_MAX_HEADER} bytes"
    )


def _add_property(path: Path, element: _Element, line: str, words: list[str]) -> None:
    if len(words) == 3 and words[1] in _TYPES:
        name, kind, length = words[2], _TYPES[words[1]], None
    elif len(words) == 5 and words[1] == "list" and _TYPES.get(words[2], "f")[0] in "iu" and words[3] in _TYPES:
        name, kind, length = words[4], _TYPES[words[3]], _TYPES[words[2]]
    else:
        raise _corrupt(path, line, "'property TYPE NAME' or 'property list TYPE TYPE NAME'")
    if name in (known for known, _, _ in element.properties):
        raise _corrupt(path, line, f"each property of {element.name} once")
    element.properties.append((name, kind, length))


def _skip(path: Path, file: BinaryIO, element: _Element, order: str, size: int) -> None:
    """Go past an element that stands before the vertices."""
    if order == "ascii":
        for _ in range(element.count):
            if not file.readline():
                raise ValueError(f"{path}: truncated inside element {element.name}")
        return
    if not element.has_list():
        file.seek(min(element.count * element.dtype(_ORDERS[order]).itemsize, size + 1), 1)
    else:
        for _ in range(element.count):
            for _, kind, length in element.properties:
                repeat = 1
                if length is not None:
                    head = file.read(int(length[1]))
                    if len(head) < int(length[1]):
                        raise ValueError(f"{path}: truncated inside element {element.name}")
                    repeat = int(np.frombuffer(head, _ORDERS[order] + length)[0])
                if repeat < 0:
                    raise ValueError(f"{path}: element {element.name} holds a list of length {repeat}")
                file.seek(repeat * int(kind[1]), 1)
            if file.tell() > size:
                break
    if file.tell() > size:
        raise ValueError(f"{path}: truncated inside element {element.name}")


def read_ply(path: Path) -> Columns:
    """The named properties of the vertices of a PLY file; faces, other elements and a vertex's lists are left out."""
    size = check_file(path, "a PLY cloud")
    with open(path, "rb") as file:
        order, elements = _read_header(path, file)
        vertices = [element for element in elements if element.name == "vertex"]
        if len(vertices) != 1:
            raise ValueError(f"{path}: PLY header: expected one element 'vertex', got {len(vertices)}")
        vertex = vertices[0]
        if not vertex.properties:
            raise ValueError(f"{path}: PLY header: element vertex has no properties")
        for element in elements[: elements.index(vertex)]:
            _skip(path, file, element, order, size)
        last = vertex is elements[-1]
        if vertex.has_list():
            return read_without_lists(path, file, vertex.properties, vertex.count, _ORDERS[order], size, last)
        dtype, left = vertex.dtype(_ORDERS[order]), size - file.tell()
        rows = _read_vertices(path, file, vertex, dtype, order, left, last)
        return {name: rows[name] for name in dtype.names or ()}


def _read_vertices(
    path: Path, file: BinaryIO, vertex: _Element, dtype: np.dtype, order: str, left: int, last: bool
) -> Array:
    if order == "ascii":
        return read_rows(path, file, dtype, vertex.count, left, last)
    expected = vertex.count * dtype.itemsize
    if expected > left:
        raise ValueError(
            f"{path}: truncated: the header claims {vertex.count} vertices of {dtype.itemsize} bytes, "
            f"{left} bytes follow"
        )
    if last and left - expected >= dtype.itemsize:
        raise ValueError(
            f"{path}: the header claims {vertex.count} vertices of {dtype.itemsize} bytes, but {left} bytes follow"
        )
    return np.frombuffer(file.read(expected), dtype=dtype)
