"""Rows of PLY vertices that hold lists: their length differs from row to row. The lists are left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pointcloud.io.columns import Array, Columns

# (name, type, type of the length or None where the property is one value)
Properties = Sequence[tuple[str, str, str | None]]


def read_without_lists(
    path: Path, file: BinaryIO, properties: Properties, count: int, order: str, size: int, last: bool
) -> Columns:
    """Columns [count] of the properties that are one value, from a file that stands before the first vertex.

    order: "=" for text, else the byte order. size: of the file in bytes. last: nothing may follow the vertices.
    Raises ValueError naming the file where vertices are missing, too many, or do not fit their types.
    """
    # The shortest row: every list empty. A value and its separator take two bytes of text.
    text = order == "="
    least = sum(2 if text else int((length or kind)[1]) for _, kind, length in properties)
    left = size - file.tell()
    if count * least - text > left:
        raise ValueError(
            f"{path}: truncated: the header claims {count} vertices of at least {least} bytes, {left} bytes follow"
        )
    read = _text_rows if text else _binary_rows
    values = read(path, file.read(), properties, count, order, last)
    return dict(zip([name for name, _, length in properties if length is None], values, strict=True))


def _text_rows(path: Path, data: bytes, properties: Properties, count: int, order: str, last: bool) -> list[Array]:
    lines = [line for line in data.decode("latin-1").splitlines() if line.strip()]
    if len(lines) < count or (last and len(lines) > count):
        raise ValueError(f"{path}: the header claims {count} vertices, the file holds {len(lines)} lines")
    values: list[list[float]] = [[] for _, _, length in properties if length is None]
    for row, line in enumerate(lines[:count]):
        words, at = line.split(), 0
        try:
            columns = iter(values)
            for _, kind, length in properties:
                if length is None:
                    next(columns).append(float(words[at]) if kind[0] == "f" else int(words[at]))
                elif int(words[at]) < 0:
                    raise ValueError("a list of negative length")
                else:
                    at += int(words[at])
                at += 1
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}: vertex {row}: expected {len(properties)} properties: {error}") from None
        if at != len(words):
            raise ValueError(f"{path}: vertex {row}: expected {at} numbers, got {len(words)}")
    singles = [(name, kind) for name, kind, length in properties if length is None]
    return [_narrow(path, name, kind, column) for (name, kind), column in zip(singles, values, strict=True)]


def _narrow(path: Path, name: str, kind: str, column: list[float]) -> Array:
    """A column in its type; a uchar of 300 must not wrap."""
    dtype = np.dtype(kind)
    if dtype.kind in "iu" and column:
        limits = np.iinfo(dtype)
        if min(column) < limits.min or max(column) > limits.max:
            raise ValueError(f"{path}: {name} must fit {dtype}, got {min(column)} to {max(column)}")
    return np.array(column, dtype=dtype)


def _binary_rows(path: Path, data: bytes, properties: Properties, count: int, order: str, last: bool) -> list[Array]:
    n_bytes = len(data)
    starts = np.zeros((count, sum(length is None for _, _, length in properties)), dtype=np.int64)
    at = 0
    for row in range(count):
        column = 0
        for _, kind, length in properties:
            if length is None:
                starts[row, column] = at
                column, at = column + 1, at + int(kind[1])
                continue
            width = int(length[1])
            repeat = int.from_bytes(data[at : at + width], "little" if order == "<" else "big", signed=length[0] == "i")
            if repeat < 0:
                raise ValueError(f"{path}: vertex {row} holds a list of length {repeat}")
            at += width + repeat * int(kind[1])
        if at > n_bytes:
            raise ValueError(f"{path}: truncated inside vertex {row} of {count}")
    if last and at != n_bytes:
        raise ValueError(f"{path}: the header claims {count} vertices, {n_bytes - at} bytes follow them")
    raw = np.frombuffer(data, dtype=np.uint8)
    values = []
    for i, kind in enumerate(kind for _, kind, length in properties if length is None):
        where = starts[:, i, None] + np.arange(int(kind[1]))
        values.append(raw[where].view(order + kind).reshape(-1) if count else np.empty(0, dtype=kind))
    return values
