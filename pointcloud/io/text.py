"""Text files of rows of numbers: .txt .xyz .csv .pts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointcloud.io.columns import Columns, split
from pointcloud.io.files import check_file, recognise
from pointcloud.io.numpy_files import name_columns

_MAX_LINE = 1 << 16


def _words(line: str) -> list[str]:
    return line.replace(",", " ").replace(";", " ").split()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def read_text(path: Path, names: Sequence[str] | None) -> Columns:
    """Rows of numbers between white space, commas or semicolons.

    Before them may stand comments (# or //), the number of points, and a line of column names (also as a comment).
    Columns without names are told apart by their numbers: x y z, an intensity (from -2048 on in Leica's .pts), a ring,
    colours of 8 or 16 bits.
    """
    check_file(path, "rows of numbers")
    with open(path, "rb") as raw:
        head = raw.read(4096)
    known = recognise(head)
    if known or b"\0" in head:
        raise ValueError(f"{path}: expected rows of numbers as text, got {known or 'a binary file'}")
    header: list[str] | None = None
    count: int | None = None
    skip = 0
    first: list[str] = []
    delimiter: str | None = None
    with open(path, encoding="latin-1") as file:
        while line := file.readline(_MAX_LINE):
            if len(line) == _MAX_LINE:
                raise ValueError(f"{path}: expected rows of numbers, got a line of more than {_MAX_LINE} characters")
            bare = line.strip().removeprefix("\xef\xbb\xbf")
            comment = bare.startswith(("#", "//"))
            words = _words(bare.lstrip("#/"))
            if (
                not comment
                and words
                and all(_is_number(word) for word in words)
                and (len(words) > 1 or count is not None)
            ):
                first = words
                delimiter = next((mark for mark in ",;" if mark in line), None)
                break
            skip += 1
            if not comment and len(words) == 1 and words[0].isdigit() and len(words[0]) <= 18:
                count = int(words[0])
            elif {"x", "y", "z"} <= {word.lower().strip('"') for word in words}:
                header = [word.lower().strip('"') for word in words]
            elif words and not comment:
                raise ValueError(
                    f"{path}: expected rows of numbers or a line of column names with x, y, z, got {bare[:60]!r}"
                )
    if not first:
        if count or (header is None and count is None):
            raise ValueError(
                f"{path}: expected rows of numbers, got none{f', though line 1 counts {count}' if count else ''}"
            )
        empty = np.empty((0, len(names or header or "xyz")))
        return split(empty, names or header or ["x", "y", "z"])
    if header is not None and len(header) != len(first):
        raise ValueError(f"{path}: the header names {len(header)} columns, the first row holds {len(first)} numbers")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            rows = np.loadtxt(
                path, delimiter=delimiter, comments=["#", "//"], skiprows=skip, ndmin=2, encoding="latin-1"
            )
    except (ValueError, UserWarning) as error:
        raise ValueError(
            f"{path}: expected rows of {len(first)} numbers (after {skip} lines of header): {error}"
        ) from None
    if count is not None and len(rows) != count:
        raise ValueError(f"{path}: the file says {count} points and holds {len(rows)} (truncated?)")
    return name_columns(path, rows, names or header, text=True)
