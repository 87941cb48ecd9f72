"""The rows of numbers in ascii PCD and PLY files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pointcloud.io.columns import Array


def read_rows(path: Path, file: BinaryIO, dtype: np.dtype, n_rows: int, left: int, last: bool) -> Array:
    """`n_rows` rows of numbers between white space or commas as a structured array [n_rows] of `dtype`.

    left: bytes from here to the end of the file. last: nothing may follow the rows.
    Raises ValueError naming the file where rows are missing, too many or not numbers.
    """
    n_values = sum(int(np.prod(dtype[name].shape, dtype=np.int64)) for name in dtype.names or ())
    # A value and its separator take two bytes: a header that claims more must not make anyone allocate it.
    if n_rows * n_values * 2 - 1 > left:
        raise ValueError(
            f"{path}: the header claims {n_rows} points, {left} bytes of text cannot hold them (truncated?)"
        )
    if n_rows == 0:
        if last and file.read(1024).strip():
            raise ValueError(f"{path}: the header claims 0 points, but the file holds more")
        return np.empty(0, dtype=dtype)
    # Read wide, then narrow with a check: a uchar of 300 must not wrap.
    wide = np.dtype([(name, _wide(dtype[name].base), dtype[name].shape) for name in dtype.names or ()])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # loadtxt's "input contained no data": counted below
            rows = np.loadtxt(
                _lines(file), dtype=wide, comments=None, max_rows=n_rows + last, encoding="latin-1", ndmin=1
            )
    except ValueError as error:
        raise ValueError(f"{path}: expected {n_rows} rows of {n_values} numbers: {error}") from None
    if len(rows) != n_rows:
        raise ValueError(
            f"{path}: the header claims {n_rows} points, the file holds {'more' if len(rows) > n_rows else len(rows)}"
        )
    if last:
        file.seek(-1, 2)
        if file.read(1) not in b"\n\r \t\0":
            warnings.warn(
                f"{path}: the last line has no end; its last number may be cut short", UserWarning, stacklevel=6
            )
    out = np.empty(n_rows, dtype=dtype)
    for name in dtype.names or ():
        column, base = rows[name], dtype[name].base
        if base.kind in "iu" and column.size:
            limits = np.iinfo(base)
            if column.min() < limits.min or column.max() > limits.max:
                raise ValueError(f"{path}: {name} must fit {base}, got {column.min()} to {column.max()}")
        with np.errstate(over="ignore"):
            out[name] = column
    return out


def _lines(file: BinaryIO) -> BinaryIO | Iterator[bytes]:
    """The lines from here on, commas as blanks. Where the first line has none, the file itself."""
    start = file.tell()
    commas = b"," in file.readline(1 << 16)
    file.seek(start)
    return (line.replace(b",", b" ") for line in file) if commas else file


def _wide(base: np.dtype) -> np.dtype:
    return np.dtype({"f": np.float64, "i": np.int64, "u": np.uint64 if base.itemsize == 8 else np.int64}[base.kind])
