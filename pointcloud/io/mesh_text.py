"""The vertices of meshes in text: Wavefront `.obj` and Geomview `.off`. Faces are left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pointcloud.io.columns import Array, Columns, split
from pointcloud.io.files import check_file, first_bytes

_MAX_LINE = 1 << 16
_OBJ = {
    "v", "vt", "vn", "vp", "f", "l", "p", "g", "o", "s", "mg", "usemtl", "mtllib", "usemap", "maplib", "shadow_obj",
    "trace_obj", "bevel", "c_interp", "d_interp", "lod", "cstype", "deg", "bmat", "step", "curv", "curv2", "surf",
    "parm", "trim", "hole", "scrv", "sp", "end", "con", "ctech", "stech", "call", "csh",
}  # fmt: skip


def _lines(path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that holds any, without comments; a backslash at its end continues a line."""
    with open(path, "rb") as raw:
        head = raw.read(4096)
    if b"\0" in head:
        raise ValueError(f"{path}: expected {what}, got {first_bytes(head[:64])}")
    before: list[str] = []
    with open(path, encoding="latin-1") as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            if len(line) == _MAX_LINE:
                raise ValueError(f"{path}: expected {what}, line {number} has more than {_MAX_LINE} characters")
            text = line.split("#")[0].rstrip()
            if text.endswith("\\"):
                before += text[:-1].split()
                continue
            words, before = before + text.split(), []
            if words:
                yield number, words


def _numbers(path: Path, line: int, words: list[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError:
        raise ValueError(f"{path}: line {line}: expected numbers, got {' '.join(words)[:60]!r}") from None


def _columns(path: Path, rows: list[list[float]]) -> Columns:
    """Rows x y z, and where all have them a colour."""
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"{path}: the vertices hold {' and '.join(map(str, sorted(lengths)))} numbers; expected one")
    table: Array = np.array(rows, dtype=np.float64).reshape(len(rows), lengths.pop() if lengths else 3)
    return split(table, ("x", "y", "z", "red", "green", "blue", "alpha")[: table.shape[1]])


def read_obj(path: Path) -> Columns:
    """The lines `v x y z` of an .obj file, also with a weight (`x y z w`, left out) or a colour (`x y z r g b`)."""
    check_file(path, "an OBJ mesh")
    rows: list[list[float]] = []
    for number, (keyword, *words) in _lines(path, "an OBJ mesh"):
        if keyword not in _OBJ:
            raise ValueError(
                f"{path}: line {number}: expected a line of an OBJ mesh (v, vn, f ...), got {keyword[:40]!r}"
            )
        if keyword != "v":
            continue
        values = _numbers(path, number, words)
        if len(values) not in (3, 4, 6, 7):
            raise ValueError(f"{path}: line {number}: expected a vertex of 3, 4, 6 or 7 numbers, got {len(values)}")
        # Four: the last is a weight. Seven: x y z w r g b.
        rows.append(values[:3] + (values[-3:] if len(values) >= 6 else []))
    if not rows:
        raise ValueError(f"{path}: expected an OBJ mesh, found no vertex (a line 'v x y z')")
    return _columns(path, rows)


def read_off(path: Path) -> Columns:
    """The vertices of an .off file (OFF, COFF with colours, NOFF and CNOFF with normals before them)."""
    size = check_file(path, "an OFF mesh")
    lines = _lines(path, "an OFF mesh")
    _, words = next(lines, (0, [""]))
    kind, counts = words[0].upper(), words[1:]
    for known in ("CNOFF", "COFF", "NOFF", "OFF"):  # some files write the counts right behind the word
        if kind.startswith(known):
            counts = ([kind[len(known) :]] if kind[len(known) :] else []) + counts
            kind = known
            break
    else:
        with open(path, "rb") as file:
            raise ValueError(
                f"{path}: expected an OFF mesh (OFF, COFF, NOFF or CNOFF), got {first_bytes(file.read(64))}"
            )
    if not counts:
        _, counts = next(lines, (0, []))
    if len(counts) != 3 or not all(word.isascii() and word.isdigit() and len(word) <= 18 for word in counts):
        raise ValueError(f"{path}: expected numbers of vertices, faces and edges, got {' '.join(counts)[:60]!r}")
    n_points = int(counts[0])
    least = 3 + 3 * ("N" in kind)
    if n_points * least * 2 > size:
        raise ValueError(f"{path}: the header claims {n_points} vertices, {size} bytes cannot hold them (truncated?)")
    rows: list[list[float]] = []
    for number, words in lines:
        if len(rows) == n_points:
            break
        values = _numbers(path, number, words)
        colours = values[least:]
        if len(values) < least or (colours and len(colours) not in (3, 4)):
            raise ValueError(f"{path}: line {number}: expected a vertex of {least} numbers, got {len(values)}")
        rows.append(values[:3] + colours)
    if len(rows) != n_points:
        raise ValueError(f"{path}: the header claims {n_points} vertices, the file holds {len(rows)} (truncated?)")
    return _columns(path, rows)
