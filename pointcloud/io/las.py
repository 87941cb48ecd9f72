"""LAS and LAZ files, read by laspy (extra `trisparse[pointcloud]`)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pointcloud.io.columns import Columns
from pointcloud.io.files import check_file, first_bytes

# Points decoded at a time: memory follows what the file really holds, not what its header claims.
_CHUNK = 1 << 18


def _check_header(path: Path, size: int) -> None:
    """Check that the file holds as many points as its header counts, which laspy believes unseen."""
    with open(path, "rb") as file:
        head = file.read(375)
    if not head.startswith(b"LASF"):
        raise ValueError(f"{path}: expected a LAS or LAZ file (begins with 'LASF'), got {first_bytes(head)}")
    if len(head) < 227:
        raise ValueError(f"{path}: truncated: a LAS header has at least 227 bytes, got {len(head)}")
    start, _, kind, record, count = struct.unpack_from("<IIBHI", head, 96)
    if head[25] >= 4 and len(head) >= 255:
        count = struct.unpack_from("<Q", head, 247)[0]
    compressed = bool(kind & 0xC0)
    if start > size or (not compressed and start + count * record > size):
        raise ValueError(
            f"{path}: truncated: the header claims {count} points of {record} bytes from byte {start}, "
            f"the file has {size} bytes"
        )


def _own_names(names: Sequence[str]) -> dict[str, str]:
    """The column of each dimension: `extra_` before one that differs from another only in case ("Intensity")."""
    columns: dict[str, str] = {}
    taken = {"x", "y", "z"}
    for name in names:
        column = name
        while column.lower() in taken:
            column = f"extra_{column}"
        taken.add(column.lower())
        columns[name] = column
    return columns


def read_las(path: Path) -> Columns:
    """The dimensions of a LAS or LAZ file; x, y, z are float64 world coordinates in metres."""
    size = check_file(path, "a LAS or LAZ cloud")
    _check_header(path, size)
    laspy = _laspy(path)
    parts: dict[str, list[np.ndarray]] = {}
    try:
        with laspy.open(path) as reader:
            claimed = reader.header.point_count
            names = _own_names([n for n in reader.header.point_format.dimension_names if n not in ("X", "Y", "Z")])
            empty = laspy.ScaleAwarePointRecord.zeros(0, header=reader.header)
            for points in chain([empty], reader.chunk_iterator(_CHUNK)):
                for axis in "xyz":
                    parts.setdefault(axis, []).append(np.array(points[axis], dtype=np.float64))
                for name, column in names.items():
                    parts.setdefault(column, []).append(np.array(points[name]))
    # The decoders under laspy raise what they like on corrupt input (even BaseException subclasses from Rust panics).
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{path}: corrupt or truncated LAS / LAZ file: {type(error).__name__}: {error}") from error
    columns = {name: np.concatenate(chunks) for name, chunks in parts.items()}
    if len(columns["x"]) != claimed:
        raise ValueError(f"{path}: the header claims {claimed} points, the file holds {len(columns['x'])}")
    return columns


def open_las(path: Path, extra: Sequence[str]) -> tuple[int, Callable[[int], Iterator[np.ndarray]]]:
    """(number of points, a function from a number of points to blocks float64 [n, 3 + len(extra)]) of a LAS file."""
    _check_header(path, check_file(path, "a LAS or LAZ cloud"))
    laspy = _laspy(path)
    with laspy.open(path) as reader:
        claimed = int(reader.header.point_count)
        names = list(reader.header.point_format.dimension_names)
    for name in extra:
        if name not in names:
            raise ValueError(f"{path}: extra must name dimensions of the file ({', '.join(names)}), got {name!r}")

    def blocks(size: int) -> Iterator[np.ndarray]:
        count = 0
        with laspy.open(path) as reader:
            for points in reader.chunk_iterator(size):
                block = np.stack([np.asarray(points[name], np.float64) for name in ("x", "y", "z", *extra)], 1)
                count += len(block)
                yield block
        if count != claimed:
            raise ValueError(f"{path}: the header claims {claimed} points, the file holds {count}")

    return claimed, blocks


def _laspy(path: Path) -> Any:
    try:
        import laspy
    except ImportError as error:
        raise ImportError(
            f"{path}: reading LAS / LAZ needs laspy and lazrs: pip install 'trisparse[pointcloud]'"
        ) from error
    return laspy
