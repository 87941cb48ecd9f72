"""Headerless `.bin` files: rows of numbers of one type, as KITTI, nuScenes, Waymo and ScanNet exports have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointcloud.io.columns import Array, Columns, guess_names, is_intensity, split
from pointcloud.io.files import check_file, recognise
from pointcloud.io.plausible import implausible

KITTI = ("x", "y", "z", "intensity")
NUSCENES = ("x", "y", "z", "intensity", "ring")
# Formats of data sets: the columns of a row. The last of Waymo is a flag, a time or a pixel, as the converter had it.
PRESETS = {
    "kitti": KITTI,
    "nuscenes": NUSCENES,
    "waymo": ("x", "y", "z", "intensity", "elongation", "aux"),
    "sunrgbd": ("x", "y", "z", "red", "green", "blue"),
}
DTYPES = ("float16", "float32", "float64", "int16", "int32")
BYTE_ORDERS = {"little": "<", "big": ">"}
_LAYOUTS = (KITTI, NUSCENES, ("x", "y", "z", "red", "green", "blue"))
# Below this many numbers the statistics of the columns say nothing.
_ENOUGH = 512
_LENGTHS = range(3, 9)
_RUNS, _RUN = 4, 10 * math.lcm(*_LENGTHS)  # numbers that tell how long a row is
# A row length explains a file clearly better than another where its share is this much larger.
_CLEARLY = 0.1
_ELONGATION = 4


def check_values(dtype: str | None, byte_order: str | None) -> np.dtype:
    """The type of a number in a file without a header. Raises ValueError naming the argument."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if byte_order is not None and byte_order not in BYTE_ORDERS:
        raise ValueError(f"byte_order must be one of {', '.join(BYTE_ORDERS)}, got {byte_order!r}")
    return _of_order(dtype or "float32", byte_order or "little")


def _of_order(dtype: str, byte_order: str) -> np.dtype:
    return np.dtype(BYTE_ORDERS[byte_order] + np.dtype(dtype).str[1:])


def _in_words(dtype: np.dtype) -> str:
    return dtype.name + (" of big byte order" if dtype.str[0] == ">" else "")


def _sample(values: Array, least: int) -> Array:
    """The numbers, or some runs of neighbours among them, each of whole rows from a multiple of `least` on.

    Runs: single rows at equal distances could fall into step with another row length.
    """
    length = -(-_RUN // least) * least
    if len(values) <= _RUNS * length:
        return values
    starts = [len(values) * i // _RUNS // least * least for i in range(_RUNS)]
    return np.concatenate([values[start : start + length] for start in starts])


def _shares(values: Array, lengths: Sequence[int]) -> dict[int, float]:
    """Share of the variance of the numbers that their column explains, for each row length: large for the true one.

    Empty where the numbers are too few or not all finite.
    """
    if values.size < _ENOUGH or not np.isfinite(values).all():
        return {}
    lengths = [n for n in lengths if values.size % n == 0]
    rows = np.arcsinh(_sample(values, math.lcm(*lengths)).astype(np.float64))
    shares = dict.fromkeys(lengths, 0.0)
    # Signed and absolute: x and y have the same mean in a full turn, x and z do not have the same size.
    for view in (rows, np.abs(rows)):
        total = float(view.var())
        for n in lengths if total > 0 else ():
            means = np.ones(len(view) // n) @ view.reshape(-1, n) / (len(view) // n)
            shares[n] = max(shares[n], float(means.var()) / total)
    return shares


def _detect(path: Path, values: Array, dtype: np.dtype) -> tuple[str, ...]:
    candidates = [layout for layout in _LAYOUTS if values.size % len(layout) == 0]
    plausible = [c for c in candidates if guess_names(values.reshape(-1, len(c))) == list(c)]
    # A file of other rows (x y z alone, seven columns) can pass by chance: its own row length explains it better.
    shares = _shares(values, _LENGTHS)
    if shares:
        best = max(shares.values(), default=0.0)
        plausible = [c for c in plausible if shares[len(c)] >= best - 0.05]
    if len(plausible) == 1:
        return plausible[0]
    found = "several fit: " + "; ".join(" ".join(c) for c in plausible) if plausible else "none of the known ones fits"
    raise ValueError(
        f"{path}: cannot tell the columns of {values.size} {_in_words(dtype)} numbers ({found}); "
        f"pass columns=, for example columns='x y z intensity'{_other_types(path, dtype)}"
    )


def _other_types(path: Path, taken: np.dtype) -> str:
    """Types of number with which the file would be a cloud of a known layout, as advice; empty where there is none."""
    fits = []
    for name in ("float32", "float16", "float64"):
        for order in BYTE_ORDERS:
            dtype = _of_order(name, order)
            if dtype == taken or path.stat().st_size % dtype.itemsize:
                continue
            values = np.fromfile(path, dtype=dtype)
            for layout in _LAYOUTS:
                if values.size % len(layout) == 0:
                    rows = values.reshape(-1, len(layout))
                    if guess_names(rows) == list(layout) and implausible([rows[:, i] for i in range(3)]) is None:
                        fits.append(f"dtype={name!r}" + (f" and byte_order={order!r}" if order == "big" else ""))
                        break
    return f"; the numbers would be coordinates with {', or '.join(fits)}" if fits else ""


def _check_coordinates(path: Path, rows: Array, names: Sequence[str], dtype: np.dtype) -> None:
    """Check that rows [N, C] with the columns `names` can be points."""
    reason = implausible([rows[:, names.index(axis)] for axis in "xyz"])
    if reason is not None:
        raise ValueError(
            f"{path}: read as rows of {len(names)} {_in_words(dtype)} ({' '.join(names)}), this is no cloud: {reason}; "
            f"pass dtype= (--values), byte_order= or columns= where they differ{_other_types(path, dtype)}"
        )


def _check_length(path: Path, rows: Array, names: Sequence[str]) -> None:
    """Check that no other row length explains the numbers clearly better than that of `names`."""
    n = len(names)
    shares = _shares(rows.reshape(-1), [*_LENGTHS, *([] if n in _LENGTHS else [n])])
    # Neighbours that alternate, as beams do, make a multiple of the true length look better.
    better = {length: share for length, share in shares.items() if length % n and share > shares[n] + _CLEARLY}
    if better:
        best = max(better, key=better.__getitem__)
        raise ValueError(
            f"{path}: the numbers are not rows of {n} ({' '.join(names)}): rows of {best} explain them better "
            f"({better[best]:.0%} of their variance instead of {shares[n]:.0%}); pass columns= with {best} names"
        )


def _check_preset(path: Path, rows: Array, preset: str) -> None:
    """Check what the columns of a data set must hold."""
    if preset == "nuscenes" and guess_names(rows) != list(NUSCENES):
        raise ValueError(f"{path}: the last two columns are not an intensity and a ring number; pass columns=")
    if preset in ("kitti", "waymo") and not is_intensity(rows[:, 3]):
        raise ValueError(f"{path}: the fourth column is not an intensity (0 to 65535); pass columns=")
    if preset == "waymo" and not bool(((rows[:, 4] >= 0) & (rows[:, 4] <= _ELONGATION)).all()):
        raise ValueError(f"{path}: the fifth column is not an elongation (0 to {_ELONGATION}); pass columns=")
    colours = rows[:, 3:6]
    if preset == "sunrgbd" and not bool(((colours >= 0) & (colours <= 255)).all()):
        raise ValueError(f"{path}: the last three columns are not colours (0 to 1 or 0 to 255); pass columns=")


def read_raw(path: Path, names: Sequence[str] | None, preset: str | None, dtype: np.dtype) -> Columns:
    """Rows of numbers of one type: the columns `names`, those of a data set, or detected ones.

    Refused where the numbers cannot be coordinates: labels, images and numbers of another type have no header that
    tells them from a cloud. A file of 0 bytes is a cloud of 0 points.
    """
    what = f"rows of {_in_words(dtype)}"
    size = check_file(path, what)
    with open(path, "rb") as file:
        known = recognise(file.read(64))
    if known:
        raise ValueError(f"{path}: expected {what}, got {known}")
    if size % dtype.itemsize:
        raise ValueError(
            f"{path}: expected rows of {dtype.itemsize}-byte {_in_words(dtype)}, got {size} bytes "
            f"(truncated, or not a cloud)"
        )
    values = np.fromfile(path, dtype=dtype)
    wanted = names or PRESETS.get(preset or "")
    if not values.size:
        wanted = wanted or KITTI
        return split(values.reshape(0, len(wanted)), wanted)
    if wanted is None:
        if values.size >= _ENOUGH and values.size % 2 == 0 and not values[::2].any() and values.any():
            raise ValueError(
                f"{path}: read as {_in_words(dtype)}, every other number is 0, as round numbers of twice the width "
                f"are; pass dtype= (--values){_other_types(path, dtype)}"
            )
        with np.errstate(all="ignore"):  # these may be no numbers at all
            wanted = _detect(path, values, dtype)
    if values.size % len(wanted):
        raise ValueError(
            f"{path}: {size} bytes are not whole rows of {len(wanted)} {_in_words(dtype)} ({' '.join(wanted)}): "
            f"{size % (dtype.itemsize * len(wanted))} bytes left over "
            f"(truncated, or other columns: pass columns=){_other_types(path, dtype)}"
        )
    rows = values.reshape(-1, len(wanted))
    with np.errstate(all="ignore"):
        _check_coordinates(path, rows, wanted, dtype)
        if names is not None or preset is not None:
            _check_length(path, rows, wanted)
        if names is None and preset is not None:
            _check_preset(path, rows, preset)
    return split(rows, wanted)


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
