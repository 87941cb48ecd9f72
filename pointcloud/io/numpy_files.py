"""`.npy` and `.npz` files. Nothing is unpickled, and no header is believed before the bytes are there."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from pointcloud.io.columns import Array, Columns, guess_names, split
from pointcloud.io.files import check_file, first_bytes
from pointcloud.io.plausible import implausible

_POINT_KEYS = (
    "points",
    "point",
    "xyz",
    "pc",
    "cloud",
    "point_cloud",
    "pos",
    "positions",
    "coord",
    "coords",
    "data",
    "arr_0",
)
# What deflate can reach at most; a member that claims more is not believed.
_MAX_INFLATION = 1032


def _read_array(path: Path, file: IO[bytes], size: int, name: str) -> Array:
    """One array in NPY format out of `size` bytes."""
    where = f"{path}: {name}" if name else f"{path}"
    head = file.read(8)
    if head[:6] != b"\x93NUMPY":
        raise ValueError(f"{where}: expected a NumPy array, got {first_bytes(head)}")
    try:
        reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[head[6]]
        shape, fortran, dtype = reader(file)
    except (KeyError, IndexError, ValueError, EOFError) as error:
        raise ValueError(f"{where}: corrupt NumPy header: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"{where}: holds Python objects, which are never loaded (they can run code)")
    n_bytes = dtype.itemsize
    for length in shape:
        n_bytes *= length
    left = size - file.tell()
    if n_bytes != left:
        raise ValueError(
            f"{where}: the header claims {n_bytes} bytes {dtype} {list(shape)}, {left} bytes follow (truncated?)"
        )
    if n_bytes == 0:
        return np.empty(shape, dtype=dtype)
    data = file.read(n_bytes)
    if len(data) != n_bytes:
        raise ValueError(f"{where}: truncated: expected {n_bytes} bytes, got {len(data)}")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def name_columns(path: Path, rows: Array, names: Sequence[str] | None, text: bool = False) -> Columns:
    """Columns of an array [N, C], or of a structured array [N] whose fields carry names."""
    if rows.dtype.names is not None:
        if names is not None:
            raise ValueError(
                f"{path}: columns= does not apply, the array names its columns: {', '.join(rows.dtype.names)}"
            )
        if rows.ndim != 1:
            raise ValueError(f"{path}: a structured array must be [N], got {list(rows.shape)}")
        return {name: rows[name] for name in rows.dtype.names}
    if rows.ndim != 2 or rows.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: expected an array of numbers [N, C] with C >= 3, got {rows.dtype} {list(rows.shape)}"
        )
    if names is None:
        names = guess_names(rows, text)
        if names is None:
            raise ValueError(
                f"{path}: cannot tell the {rows.shape[1]} columns; pass columns=, for example columns='x y z intensity'"
            )
    if rows.shape[1] != len(names):
        raise ValueError(f"{path}: columns= names {len(names)} columns, the array is {list(rows.shape)}")
    columns = split(rows, names)
    reason = None if text or rows.dtype.kind != "f" else implausible([columns[axis] for axis in "xyz"], span=False)
    if reason is not None:
        raise ValueError(f"{path}: an array {rows.dtype} {list(rows.shape)} that is no cloud: {reason}")
    return columns


def read_npy(path: Path, names: Sequence[str] | None) -> Columns:
    """An array [N, C], or a structured array [N]."""
    size = check_file(path, "a NumPy array")
    with open(path, "rb") as file:
        return name_columns(path, _read_array(path, file, size, ""), names)


def read_npz(path: Path, names: Sequence[str] | None) -> Columns:
    """The points of an archive and its arrays of the same length; arrays of another length are no columns."""
    size = check_file(path, "a NumPy archive")
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.compress_size for info in archive.infolist()) > size:
                raise ValueError(f"{path}: its members claim more bytes than the archive has")
            for info in archive.infolist():
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                    raise ValueError(f"{path}: {info.filename}: expected a stored or deflated member, got another kind")
                if info.file_size > _MAX_INFLATION * min(info.compress_size, size) + 64:
                    raise ValueError(
                        f"{path}: {info.filename}: {info.compress_size} bytes cannot hold {info.file_size}"
                    )
                with archive.open(info) as member:
                    key = info.filename.removesuffix(".npy")
                    arrays[key] = _read_array(path, member, info.file_size, info.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        with open(path, "rb") as file:
            found = first_bytes(file.read(16))
        raise ValueError(f"{path}: expected a whole NumPy archive (.npz): {error}; got {found}") from None

    lower = {key.lower(): key for key in arrays}
    points_key = next((lower[k] for k in _POINT_KEYS if k in lower), None)
    if points_key is None and {"x", "y", "z"} <= set(lower):
        if names is not None:
            raise ValueError(f"{path}: columns= does not apply, the archive names its columns: {', '.join(arrays)}")
        n_points = len(np.atleast_1d(arrays[lower["x"]]))
        columns: Columns = {}
    elif points_key is None:
        raise ValueError(
            f"{path}: expected an array named {', '.join(_POINT_KEYS)}, got {', '.join(arrays) or 'no arrays'}"
        )
    else:
        rows = arrays.pop(points_key)
        columns = name_columns(path, rows, names)
        n_points = len(rows)
    for name, array in arrays.items():
        if array.ndim >= 1 and len(array) == n_points and array.dtype.kind in "iufb":
            if name.lower() in columns:
                raise ValueError(f"{path}: two columns are named {name.lower()!r}")
            columns[name.lower()] = array
    return columns
