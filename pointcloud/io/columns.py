"""From named columns, as every format has them, to a PointCloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pointcloud.points import PointCloud

Array = npt.NDArray[Any]
Columns = dict[str, Array]

_INTENSITY = ("intensity", "intensities", "i", "reflectance", "reflectivity", "remission", "scalar_intensity")
_LABELS = (
    "label", "labels", "class", "classification", "semantic", "semantic_label", "scalar_label", "scalar_classification",
)  # fmt: skip
_RGB = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_RGB_ROWS = ("rgb", "colors", "colours", "color", "colour")
# A float32 resolves 0.5 mm up to this distance. Beyond it the cloud is kept relative to an origin.
_FAR = 4096.0


def parse_columns(columns: str | Sequence[str] | None) -> list[str] | None:
    """Column names of a file that does not name them; `_` skips one.

    Raises:
        ValueError: names without x, y and z, or with one of them twice.
    """
    if columns is None:
        return None
    names = columns.replace(",", " ").split() if isinstance(columns, str) else list(columns)
    kept = [name.lower() for name in names if name != "_"]
    if len(set(kept)) != len(kept) or not {"x", "y", "z"} <= set(kept):
        raise ValueError(f"columns must name x, y and z, each name once ('_' skips a column), got {columns!r}")
    return [name.lower() for name in names]


def split(rows: Array, names: Sequence[str]) -> Columns:
    """Rows [N, C] as named columns; `_` is left out."""
    return {name: rows[:, i] for i, name in enumerate(names) if name != "_"}


def guess_names(rows: Array, text: bool = False) -> list[str] | None:
    """Names for the columns of rows [N, C] that carry none, or None where they are not what the names would hold.

    text: also colours of 16 bits and the whole numbers from -2048 on that scanners write as intensity.
    """
    n_columns = rows.shape[1]
    if n_columns == 3:
        return ["x", "y", "z"]
    with np.errstate(invalid="ignore", over="ignore"):
        return _guess_more(rows, text)


def _guess_more(rows: Array, text: bool) -> list[str] | None:
    n_columns = rows.shape[1]
    deepest = 65535 if text else 255
    if n_columns == 4 and (is_intensity(rows[:, 3]) or (text and _is_scanner_intensity(rows[:, 3]))):
        return ["x", "y", "z", "intensity"]
    if n_columns == 5 and is_intensity(rows[:, 3]) and is_ring(rows[:, 4]):
        return ["x", "y", "z", "intensity", "ring"]
    if n_columns == 6 and is_colour(rows[:, 3:6], deepest):
        return ["x", "y", "z", "red", "green", "blue"]
    if n_columns == 7 and is_colour(rows[:, 4:7], deepest):
        return ["x", "y", "z", "intensity", "red", "green", "blue"]
    return None


def is_intensity(column: Array) -> bool:
    seen = column[np.isfinite(column)]
    return bool(((seen >= 0) & (seen <= 65535)).all())


def is_ring(column: Array) -> bool:
    return bool(((column >= 0) & (column < 256) & (column == np.floor(column))).all())


def _is_scanner_intensity(column: Array) -> bool:
    """Whether these are the whole numbers -2048 to 2047 of Leica's .pts files."""
    return bool(((column >= -2048) & (column < 2048) & (column == np.floor(column))).all())


def is_colour(columns: Array, deepest: int = 255) -> bool:
    return bool(((columns >= 0) & (columns <= deepest) & (columns == np.floor(columns))).all())


def _native(column: Array) -> Array:
    """A copy in this machine's byte order and in a type torch computes with."""
    widened = {"u2": np.int32, "u4": np.int64, "f2": np.float32, "g": np.float64}
    dtype = column.dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize == 8:
        if column.size and int(column.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"a column of uint64 must fit int64, got {int(column.max())}")
        return np.array(column, dtype=np.int64)
    wanted = widened.get(f"{dtype.kind}{dtype.itemsize}", dtype)
    if dtype.kind == "f" and dtype.itemsize > 8:
        wanted = np.dtype(np.float64)
    return np.array(column, dtype=wanted, order="C")


def _to_bytes(values: Array, name: str) -> Array:
    """Colours as uint8. Floats up to 1 are shares of 255, whole numbers above 255 are 16 bit (LAS, text)."""
    if not values.size or values.dtype == np.uint8:
        return np.ascontiguousarray(values, dtype=np.uint8)
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all() or wide.min() < 0:
        raise ValueError(f"{name} must hold colours from 0 on, got {wide.min()} to {wide.max()}")
    if values.dtype.kind == "f" and wide.max() <= 1:
        wide = wide * 255
    elif wide.max() > 255 and bool((wide == np.floor(wide)).all()):
        wide = np.floor(wide / 256)
    if wide.max() > 255:
        raise ValueError(f"{name} must hold colours up to 255, got {values.max()}")
    return np.rint(wide).astype(np.uint8)


def _unpack(packed: Array) -> tuple[Array, Array]:
    """PCL's packed colour, 0xAARRGGBB in a float32 or an integer -> rgb [N, 3], alpha [N]."""
    bits = np.ascontiguousarray(packed.astype(packed.dtype.newbyteorder("="))).view(np.uint32)
    rgb = np.stack([(bits >> shift) & 255 for shift in (16, 8, 0)], axis=1).astype(np.uint8)
    return rgb, (bits >> 24).astype(np.uint8)


def _take_rgb(columns: Columns) -> Array | None:
    for names in _RGB:
        if all(name in columns and columns[name].ndim == 1 for name in names):
            return _to_bytes(np.stack([columns.pop(name) for name in names], axis=1), " ".join(names))
    for name in _RGB_ROWS:
        if name in columns and columns[name].ndim == 2 and columns[name].shape[1] in (3, 4):
            rows = _to_bytes(columns.pop(name), name)
            if rows.shape[1] == 4:
                columns["alpha"] = rows[:, 3]
            return np.ascontiguousarray(rows[:, :3])
    for name in ("rgb", "rgba"):
        if name in columns and columns[name].ndim == 1 and columns[name].dtype.itemsize == 4:
            rgb, alpha = _unpack(columns.pop(name))
            if name == "rgba":
                columns["alpha"] = alpha
            return rgb
    return None


def _take_labels(columns: Columns) -> Array | None:
    for name in _LABELS:
        column = columns.get(name)
        if column is None or column.ndim != 1:
            continue
        if column.dtype.kind in "iub" or (column.dtype.kind == "f" and bool((column == np.rint(column)).all())):
            return columns.pop(name).astype(np.int64)
    return None


def _take_intensity(columns: Columns) -> Array | None:
    for name in _INTENSITY:
        if name in columns and columns[name].ndim == 1 and columns[name].dtype.kind in "iufb":
            return columns.pop(name).astype(np.float32)
    return None


def _finite_rows(xyz: Sequence[Array], intensity: Array | None) -> Array:
    limit = np.finfo(np.float32).max
    finite = np.ones(len(xyz[0]), dtype=bool)
    for column in xyz:
        # The comparison is false for NaN as well.
        finite &= np.abs(column) <= limit
    if intensity is not None:
        finite &= np.isfinite(intensity)
    return finite


def _centre(axes: Sequence[Array]) -> tuple[Array, Array]:
    origin = np.zeros(3, dtype=np.float64)
    xyz = np.empty((len(axes[0]), 3), dtype=np.float32)
    for i, axis in enumerate(axes):
        if axis.size:
            # The median and not the middle: one stray point must not move the origin.
            middle = float(np.median(axis))
            origin[i] = np.rint(middle) if abs(middle) > _FAR else 0.0
        xyz[:, i] = axis.astype(np.float64) - origin[i] if origin[i] else axis
    return xyz, origin


def build_cloud(path: Path, columns: Mapping[str, Array], invalid: str) -> PointCloud:
    """A PointCloud from named columns, each [N] or [N, C].

    Points whose coordinates or intensity are not finite are an error (`invalid="error"`) or left out (`"drop"`).
    """
    # X and x mean the same thing.
    left: Columns = {}
    for name, column in columns.items():
        key = name.lower()
        if key in left:
            raise ValueError(f"{path}: two columns are named {key!r}")
        left[key] = column
    missing = [name for name in "xyz" if name not in left]
    if missing:
        raise ValueError(f"{path}: a cloud has columns x, y and z, this file has {', '.join(columns) or 'none'}")
    for name in "xyz":
        if left[name].ndim != 1 or left[name].dtype.kind not in "iuf":
            raise ValueError(f"{path}: column {name} must hold one number per point, got {left[name].dtype}")
    for name, column in left.items():
        if column.dtype.kind not in "iufb":
            raise ValueError(f"{path}: column {name} must hold numbers, got {column.dtype}")
    axes = [left.pop(name) for name in "xyz"]
    intensity = _take_intensity(left)

    finite = _finite_rows(axes, intensity)
    n_bad = int(finite.size - finite.sum())
    if n_bad and invalid == "error":
        raise ValueError(
            f"{path}: {n_bad} of {finite.size} points have a coordinate or an intensity that is not a finite number; "
            f"pass invalid='drop' to leave them out"
        )
    if n_bad:
        axes = [axis[finite] for axis in axes]
        intensity = None if intensity is None else intensity[finite]
        left = {name: column[finite] for name, column in left.items()}

    xyz, origin = _centre(axes)
    try:
        rgb, labels = _take_rgb(left), _take_labels(left)
        extra = {name: torch.from_numpy(_native(column)) for name, column in left.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return PointCloud(
        xyz=torch.from_numpy(xyz),
        intensity=None if intensity is None else torch.from_numpy(intensity),
        rgb=None if rgb is None else torch.from_numpy(rgb),
        labels=None if labels is None else torch.from_numpy(labels),
        extra=extra,
        origin=torch.from_numpy(origin),
    )
