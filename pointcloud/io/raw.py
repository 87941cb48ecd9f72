"""Headerless `.bin` files: rows of little-endian float32, as KITTI, nuScenes and ScanNet exports have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointcloud.io.columns import Array, Columns, guess_names, split
from pointcloud.io.files import check_file, recognise

KITTI = ("x", "y", "z", "intensity")
NUSCENES = ("x", "y", "z", "intensity", "ring")
_LAYOUTS = (KITTI, NUSCENES, ("x", "y", "z", "red", "green", "blue"))
# Below this many numbers the statistics of the columns say nothing.
_ENOUGH = 512


def _column_share(values: Array, n_columns: int) -> float:
    """Share of the variance of the numbers that their column explains, 0 to 1: large for the true row length."""
    rows = values[: values.size // n_columns * n_columns].reshape(-1, n_columns)
    share = 0.0
    # Signed and absolute: x and y have the same mean in a full turn, x and z do not have the same size.
    for view in (np.arcsinh(rows), np.abs(np.arcsinh(rows))):
        total = float(view.var())
        share = max(share, float(view.mean(axis=0).var()) / total if total > 0 else 0.0)
    return share


def _detect(path: Path, values: Array) -> tuple[str, ...]:
    candidates = [layout for layout in _LAYOUTS if values.size % len(layout) == 0]
    plausible = [c for c in candidates if guess_names(values.reshape(-1, len(c))) == list(c)]
    # A file of other rows (x y z alone, seven columns) can pass by chance: its own row length explains it better.
    sample = values[np.isfinite(values)] if values.size >= _ENOUGH else values[:0]
    if sample.size == values.size:
        shares = {n: _column_share(values, n) for n in range(3, 9) if values.size % n == 0}
        best = max(shares.values(), default=0.0)
        plausible = [c for c in plausible if shares[len(c)] >= best - 0.05]
    if len(plausible) == 1:
        return plausible[0]
    found = "several fit: " + "; ".join(" ".join(c) for c in plausible) if plausible else "none of the known ones fits"
    raise ValueError(
        f"{path}: cannot tell the columns of {values.size} float32 numbers ({found}); "
        f"pass columns=, for example columns='x y z intensity'"
    )


def read_raw(path: Path, names: Sequence[str] | None, detect: bool) -> Columns:
    """Rows of float32 with the columns `names`, or with detected ones. A file of 0 bytes is a cloud of 0 points."""
    size = check_file(path, "rows of float32")
    if size % 4:
        raise ValueError(f"{path}: expected rows of 4-byte float32, got {size} bytes (truncated, or not a cloud)")
    with open(path, "rb") as file:
        known = recognise(file.read(32))
    if known:
        raise ValueError(f"{path}: expected rows of float32, got {known}")
    values = np.fromfile(path, dtype="<f4")
    if not values.size:
        return split(values.reshape(0, len(names or KITTI)), names or KITTI)
    if names is None or detect:
        names = _detect(path, values)
    if values.size % len(names):
        raise ValueError(
            f"{path}: {size} bytes are not whole rows of {len(names)} float32 ({' '.join(names)}): "
            f"{size % (4 * len(names))} bytes left over (truncated, or other columns: pass columns=)"
        )
    rows = values.reshape(-1, len(names))
    if tuple(names) == NUSCENES and guess_names(rows) != list(NUSCENES):
        raise ValueError(f"{path}: the last two columns are not an intensity and a ring number; pass columns=")
    return split(rows, names)


def read_labels(path: Path, n_points: int) -> tuple[Array, Array | None]:
    """Labels int64 [N] and instances int64 [N] or None.

    `.label` (SemanticKITTI): uint32, class in the lower 16 bits, instance in the upper.
    `.bin` (nuScenes lidarseg): uint8, no instance.
    """
    size = check_file(path, "a label file")
    if path.suffix.lower() not in (".label", ".bin"):
        raise ValueError(f"{path}: labels must be a SemanticKITTI .label or a nuScenes lidarseg .bin file")
    kitti = path.suffix.lower() == ".label"
    width = 4 if kitti else 1
    if size != n_points * width:
        raise ValueError(f"{path}: expected {n_points} labels of {width} bytes = {n_points * width} bytes, got {size}")
    if not kitti:
        return np.fromfile(path, dtype=np.uint8).astype(np.int64), None
    packed = np.fromfile(path, dtype="<u4")
    return (packed & 0xFFFF).astype(np.int64), (packed >> 16).astype(np.int64)
