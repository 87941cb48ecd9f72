"""Clouds read block by block, for those that do not fit into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pointcloud.io.columns import Array
from pointcloud.io.files import check_file, first_bytes
from pointcloud.io.las import open_las
from pointcloud.io.raw import PRESETS

FORMATS = ("npy", "bin", "las")
_SUFFIXES = {".npy": "npy", ".bin": "bin", ".las": "las", ".laz": "las"}


@dataclass(frozen=True)
class BlockReader:
    """Rows of a cloud, x, y and z first.

    Attributes:
        n_points: number of rows.
        columns: numbers per row.
        dtype: float32 or float64.
        identity: what tells this source from another: path, size and time of change, or form and checksum of an array.
    """

    n_points: int
    columns: int
    dtype: np.dtype
    identity: list[Any]
    _source: Any

    def blocks(self, size: int) -> Iterator[Array]:
        """The rows in order, at most `size` at a time: [n, columns]."""
        if isinstance(self._source, np.ndarray):
            for begin in range(0, self.n_points, size):
                yield np.ascontiguousarray(self._source[begin : begin + size], self.dtype)
        else:
            yield from self._source(size)


def read_blocks(
    source: str | os.PathLike[str] | Any, *, columns: Sequence[str] | int | None = None, extra: Sequence[str] = ()
) -> BlockReader:
    """Open a cloud to be read block by block.

    Args:
        source: an array or tensor [N, C] of floating numbers (such as a `numpy.memmap`), x, y and z first; or a file:
            `.npy` of such an array, `.bin` of rows of float32 without a header, `.las` or `.laz`.
        columns: of a `.bin`: how many, their names, or a preset ("kitti", "nuscenes", ...).
        extra: of a LAS file, the dimensions that follow x, y and z, such as "intensity".

    Raises:
        TypeError: an array of other than floating numbers.
        ValueError: a file of another form, or columns that do not fit.
        OSError: a file that cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        rows = source.detach().cpu().numpy() if hasattr(source, "detach") else np.asanyarray(source)
        _check_rows("source", rows.shape, rows.dtype)
        n_points, width = rows.shape
        return BlockReader(
            n_points, width, rows.dtype, ["array", n_points, width, str(rows.dtype), _checksum(rows)], rows
        )
    path = Path(source)
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: clouds are read in blocks from {', '.join(_SUFFIXES)} files")
    if columns is not None and kind != "bin":
        raise ValueError(f"{path}: columns= belongs to .bin files, which have no header")
    if extra and kind != "las":
        raise ValueError(f"{path}: extra= belongs to LAS files")
    size = check_file(path, "a cloud")
    identity = [str(path.resolve()), size, path.stat().st_mtime_ns]
    if kind == "las":
        n, blocks = open_las(path, extra)
        return BlockReader(n, 3 + len(extra), np.dtype(np.float64), identity, blocks)
    if kind == "npy":
        offset, shape, dtype = _npy(path)
    else:
        width = _width(path, columns)
        offset, dtype = 0, np.dtype("<f4")
        if size % (4 * width):
            raise ValueError(f"{path}: {size} bytes are no whole rows of {width} float32 numbers")
        shape = (size // (4 * width), width)
    if offset + shape[0] * shape[1] * dtype.itemsize != size:
        raise ValueError(f"{path}: the header claims {dtype} {list(shape)}, the file has {size} bytes (truncated?)")

    def blocks_of_file(rows: int) -> Iterator[Array]:
        # Read, not mapped: pages of a mapped file count as memory of the process.
        with open(path, "rb") as file:
            file.seek(offset)
            for begin in range(0, shape[0], rows):
                n = min(rows, shape[0] - begin)
                block = np.fromfile(file, dtype, n * shape[1])
                if block.size != n * shape[1]:
                    raise ValueError(f"{path}: truncated while it was read")
                yield block.astype(dtype.newbyteorder("="), copy=False).reshape(n, shape[1])

    return BlockReader(*shape, dtype.newbyteorder("="), identity, blocks_of_file)


def _checksum(rows: Array) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for begin in range(0, len(rows), 1 << 20):
        digest.update(np.ascontiguousarray(rows[begin : begin + (1 << 20)]).tobytes())
    return digest.hexdigest()


def _npy(path: Path) -> tuple[int, tuple[int, int], np.dtype]:
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:6] != b"\x93NUMPY" or head[6] not in (1, 2):
            raise ValueError(f"{path}: expected a NumPy array, got {first_bytes(head)}")
        read = np.lib.format.read_array_header_1_0 if head[6] == 1 else np.lib.format.read_array_header_2_0
        try:
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise ValueError(f"{path}: corrupt NumPy header: {error}") from None
        offset = file.tell()
    if fortran:
        raise ValueError(f"{path}: expected rows one after another, got an array in Fortran order")
    _check_rows(str(path), shape, dtype)
    return offset, (shape[0], shape[1]), dtype


def _check_rows(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise TypeError(f"{name} must hold float32 or float64, got {dtype} {list(shape)}")
    if len(shape) != 2 or shape[1] < 3:
        raise ValueError(f"{name} must be [N, C] with x, y and z first, got {dtype} {list(shape)}")


def _width(path: Path, columns: Sequence[str] | int | None) -> int:
    if isinstance(columns, str):
        if columns not in PRESETS:
            raise ValueError(f"columns must be a number, names or one of {', '.join(PRESETS)}, got {columns!r}")
        columns = PRESETS[columns]
    width = columns if isinstance(columns, int) else 0 if columns is None else len(columns)
    if width < 3:
        raise ValueError(
            f"{path}: columns must say how many numbers a row of the file has (3 or more), got {columns!r}"
        )
    if not isinstance(columns, int) and columns is not None and list(columns[:3]) != ["x", "y", "z"]:
        raise ValueError(f"{path}: columns must begin with x, y and z, got {list(columns)}")
    return width
