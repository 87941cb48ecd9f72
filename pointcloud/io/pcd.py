"""PCD files of the Point Cloud Library, version 0.7 and before: ascii, binary, binary_compressed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pointcloud.io.ascii_rows import read_rows
from pointcloud.io.columns import Array, Columns
from pointcloud.io.files import check_file, first_bytes

_TYPES = {
    ("F", 4): "<f4", ("F", 8): "<f8",
    ("I", 1): "<i1", ("I", 2): "<i2", ("I", 4): "<i4", ("I", 8): "<i8",
    ("U", 1): "<u1", ("U", 2): "<u2", ("U", 4): "<u4", ("U", 8): "<u8",
}  # fmt: skip
_KEYWORDS = {"VERSION", "FIELDS", "COLUMNS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA"}
_MAX_HEADER = 1 << 16
_MAX_VALUES = 1 << 16  # numbers in one point


@dataclass(frozen=True)
class _Header:
    names: tuple[str, ...]  # in the file's order; "_" is padding and may repeat
    types: tuple[str, ...]
    counts: tuple[int, ...]
    n_points: int
    data: str

    def dtype(self) -> np.dtype:
        """One point; padding fields carry a name of their own."""
        fields = []
        for i, (name, kind, count) in enumerate(zip(self.names, self.types, self.counts, strict=True)):
            fields.append((f"_{i}" if name == "_" else name, kind, () if count == 1 else (count,)))
        return np.dtype(fields)

    def columns(self, rows: Array) -> Columns:
        return {name: rows[name] for name in self.names if name != "_"}


def _whole(path: Path, keyword: str, text: str, low: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < low:
        raise ValueError(f"{path}: PCD header: {keyword} must be a whole number of at least {low}, got {text[:40]!r}")
    return int(text)


def _parse(path: Path, entries: dict[str, list[str]]) -> _Header:
    def values(keyword: str, n: int) -> list[str]:
        got = entries.get(keyword, [])
        if len(got) != n:
            raise ValueError(f"{path}: PCD header: {keyword} must hold {n} values, got {' '.join(got)[:80] or 'none'}")
        return got

    names = entries.get("FIELDS") or entries.get("COLUMNS") or []
    if not names:
        raise ValueError(f"{path}: PCD header: FIELDS is missing")
    real = [name for name in names if name != "_"]
    if len(set(real)) != len(real):
        raise ValueError(f"{path}: PCD header: FIELDS must be distinct, got {' '.join(names)[:200]}")
    kinds = values("TYPE", len(names))
    sizes = [_whole(path, "SIZE", text, 1) for text in values("SIZE", len(names))]
    counts = [1] * len(names)
    if "COUNT" in entries:
        counts = [_whole(path, "COUNT", text, 1) for text in values("COUNT", len(names))]
    if sum(counts) > _MAX_VALUES:
        raise ValueError(f"{path}: PCD header: a point may hold {_MAX_VALUES} numbers, COUNT gives it {sum(counts)}")
    types = []
    for name, kind, size in zip(names, kinds, sizes, strict=True):
        if (kind, size) not in _TYPES:
            raise ValueError(f"{path}: PCD header: field {name} has the unknown type {kind} of {size} bytes")
        types.append(_TYPES[kind, size])
    width = _whole(path, "WIDTH", values("WIDTH", 1)[0], 0)
    height = _whole(path, "HEIGHT", values("HEIGHT", 1)[0], 0) if "HEIGHT" in entries else 1
    n_points = _whole(path, "POINTS", values("POINTS", 1)[0], 0) if "POINTS" in entries else width * height
    if n_points != width * height:
        raise ValueError(f"{path}: PCD header: POINTS must be WIDTH x HEIGHT = {width} x {height}, got {n_points}")
    data = values("DATA", 1)[0].lower()
    if data not in ("ascii", "binary", "binary_compressed"):
        raise ValueError(f"{path}: PCD header: DATA must be ascii, binary or binary_compressed, got {data[:40]!r}")
    return _Header(tuple(names), tuple(types), tuple(counts), n_points, data)


def _read_header(path: Path, file: BinaryIO) -> _Header:
    entries: dict[str, list[str]] = {}
    while file.tell() < _MAX_HEADER:
        line = file.readline(_MAX_HEADER)
        words = line.decode("latin-1").split("#")[0].split()
        if line and not words:
            continue
        if not words or words[0].upper() not in _KEYWORDS:
            file.seek(0)
            found = first_bytes(file.read(16)) if not entries else f"the header line {line[:40]!r}"
            raise ValueError(f"{path}: expected a PCD header that ends with DATA, got {found}")
        keyword = words[0].upper()
        if keyword in entries:
            raise ValueError(f"{path}: PCD header: {keyword} must come once, got it twice")
        entries[keyword] = words[1:]
        if keyword == "DATA":
            if not line.endswith(b"\n"):
                raise ValueError(f"{path}: truncated: the file ends inside the header line {line[:40]!r}")
            return _parse(path, entries)
    raise ValueError(f"{path}: expected a PCD header that ends with DATA, found none in the first {_MAX_HEADER} bytes")


def _read_ascii(path: Path, file: BinaryIO, header: _Header, left: int) -> Columns:
    columns = header.columns(read_rows(path, file, header.dtype(), header.n_points, left, last=True))
    # As PCL reads it: the text of a colour of TYPE F is the float of its bits, also where that is a whole number.
    for name in ("rgb", "rgba"):
        if name in columns and columns[name].ndim == 1 and columns[name].dtype.kind == "f":
            if np.isnan(columns[name][np.isfinite(columns["x"])] if "x" in columns else columns[name]).any():
                raise ValueError(f"{path}: {name} holds 'nan': a packed colour written so cannot be recovered")
    return columns


def _read_compressed(path: Path, file: BinaryIO, header: _Header, left: int) -> Columns:
    from pointcloud.io.lzf import lzf_decompress

    dtype = header.dtype()
    sizes = file.read(8)
    if header.n_points == 0 and len(sizes) in (0, 8):
        return header.columns(np.empty(0, dtype=dtype))
    if len(sizes) < 8:
        raise ValueError(f"{path}: truncated: expected the two sizes of the compressed data, got {len(sizes)} bytes")
    packed, unpacked = struct.unpack("<II", sizes)
    if unpacked != header.n_points * dtype.itemsize:
        raise ValueError(
            f"{path}: the header claims {header.n_points} points of {dtype.itemsize} bytes, "
            f"the data holds {unpacked} bytes"
        )
    if packed > left - 8:
        raise ValueError(f"{path}: truncated: expected {packed} compressed bytes, got {left - 8}")
    try:
        data = lzf_decompress(file.read(packed), unpacked)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    # Field after field, not point after point.
    columns: dict[str, Array] = {}
    start = 0
    for name, kind, count in zip(header.names, header.types, header.counts, strict=True):
        end = start + header.n_points * count * np.dtype(kind).itemsize
        if name != "_":
            column = data[start:end].view(kind)
            columns[name] = column if count == 1 else column.reshape(header.n_points, count)
        start = end
    return columns


def read_pcd(path: Path) -> Columns:
    """The named columns of a PCD file. The VIEWPOINT is not applied: coordinates stay as written."""
    size = check_file(path, "a PCD cloud")
    with open(path, "rb") as file:
        header = _read_header(path, file)
        left = size - file.tell()
        if header.data == "ascii":
            return _read_ascii(path, file, header, left)
        if header.data == "binary_compressed":
            return _read_compressed(path, file, header, left)
        dtype = header.dtype()
        if header.n_points * dtype.itemsize > left:
            raise ValueError(
                f"{path}: truncated: the header claims {header.n_points} points of {dtype.itemsize} bytes, "
                f"{left} bytes follow"
            )
        rows = np.frombuffer(file.read(header.n_points * dtype.itemsize), dtype=dtype)
        return header.columns(rows)
