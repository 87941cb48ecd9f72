"""What the indoor data sets have in common: folders of .npy files, one per column."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointcloud.training.datasets.scan import Array, LabelMap, Scan, check_rows, load_npy


def read_coordinates(folder: Path) -> Array:
    """float32 [N, 3] of coord.npy; further columns beside it must have as many rows."""
    xyz = load_npy(folder / "coord.npy", 3).astype(np.float32)
    for name in ("color", "normal"):
        path = folder / f"{name}.npy"
        if path.is_file():
            rows = len(load_npy(path, 3))
            if rows != len(xyz):
                raise ValueError(f"{path}: expected {len(xyz)} rows, one per point of coord.npy, got {rows}")
    return xyz


def read_classes(path: Path, label_map: LabelMap) -> Array:
    """Classes int64 [N] of a .npy file of integers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: numbers that are no integers, or that the map does not name.
    """
    raw = load_npy(path, None)
    if not np.array_equal(raw, raw.astype(np.int64)):
        raise ValueError(f"{path} must hold integers, got {raw.dtype} with fractions")
    return label_map(raw.astype(np.int64), path)


def read_folder(folder: Path, labels: Path, label_map: LabelMap) -> Scan:
    """The scan of a folder with coord.npy and a file of classes."""
    xyz, classes = read_coordinates(folder), read_classes(labels, label_map)
    check_rows(folder / "coord.npy", len(xyz), labels, len(classes))
    return Scan(xyz, classes)
