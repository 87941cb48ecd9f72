"""ScanNet: scenes as Pointcept prepares them, or the published .ply meshes (Dai et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointcloud.io import read_points
from pointcloud.training.datasets.rooms import read_classes, read_folder
from pointcloud.training.datasets.scan import (
    IGNORED,
    Array,
    Dataset,
    LabelMap,
    Scan,
    check_found,
    check_root,
    check_rows,
)

CLASS_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)  # fmt: skip
# Prepared files hold the class itself; 255 is what some of them have for none.
PREPARED = LabelMap(CLASS_NAMES, {**{i: i for i in range(20)}, -1: IGNORED, 255: IGNORED})
_NYU40 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
MESHES = LabelMap(CLASS_NAMES, dict.fromkeys(range(41), IGNORED) | {number: i for i, number in enumerate(_NYU40)})
LABELS_SUFFIX = ".labels.ply"


def scannet(
    root: Path, split: str, *, sequences: Sequence[str] | None = None, label_map: LabelMap | None = None
) -> Dataset:
    """The scenes of a split.

    Two layouts: `train/` and `val/` with a folder per scene of coord.npy, segment20.npy (color.npy and normal.npy are
    checked where they are, and not used); or `scans/SCENE/SCENE_vh_clean_2.ply` beside `….labels.ply`, with the list of
    each split's scenes in `scannetv2_train.txt` and `scannetv2_val.txt`.

    Args:
        sequences: names of scenes instead of the split's.
        label_map: by default that of the layout: 20 classes, or the 40 of NYU mapped to them.

    Raises:
        NotADirectoryError, FileNotFoundError: no such folder or list.
        ValueError: neither layout, or a split without scans.
    """
    check_root(root, "ScanNet")
    if (root / "scans").is_dir():
        return _meshes(root, split, sequences, label_map or MESHES)
    return _prepared(root, split, sequences, label_map or PREPARED)


def _prepared(root: Path, split: str, sequences: Sequence[str] | None, label_map: LabelMap) -> Dataset:
    if sequences is None:
        folders = sorted(path.parent for path in (root / split).glob("*/coord.npy"))
    else:
        found = {path.parent.name: path.parent for path in root.glob("*/*/coord.npy")}
        missing = [name for name in sequences if name not in found]
        if missing:
            raise ValueError(f"{root}: expected a folder {missing[0]} with coord.npy in train or val")
        folders = [found[name] for name in sequences]
    check_found(folders, root, split, f"{split}/*/coord.npy, or a folder scans of .ply files")

    def read(i: int) -> Scan:
        return read_folder(folders[i], folders[i] / "segment20.npy", label_map)

    def read_labels(i: int) -> Array:
        return read_classes(folders[i] / "segment20.npy", label_map)

    scans = [path.relative_to(root).as_posix() for path in folders]
    return Dataset(f"scannet {split}", label_map.class_names, scans, read, read_labels, indoor=True)


def _meshes(root: Path, split: str, sequences: Sequence[str] | None, label_map: LabelMap) -> Dataset:
    if sequences is None:
        listed = root / f"scannetv2_{split}.txt"
        if not listed.is_file():
            raise FileNotFoundError(f"{listed} is missing: the names of the split's scenes, one a line")
        sequences = listed.read_text().split()
    files = [root / "scans" / name / f"{name}_vh_clean_2.ply" for name in sequences]
    check_found(files, root, split, "names in the list of its scenes")

    def label_file(i: int) -> Path:
        return files[i].with_name(files[i].stem + LABELS_SUFFIX)

    def read_labels(i: int) -> Array:
        path = label_file(i)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: every mesh needs one of its labels")
        labels = read_points(path).labels
        if labels is None:
            raise ValueError(f"{path}: expected a vertex property label, got a cloud without")
        return label_map(labels.numpy(), path)

    def read(i: int) -> Scan:
        cloud = read_points(files[i])
        labels = read_labels(i)
        check_rows(files[i], len(cloud), label_file(i), len(labels))
        return Scan(cloud.xyz.numpy().astype(np.float32), labels)

    return Dataset(f"scannet {split}", label_map.class_names, list(sequences), read, read_labels, indoor=True)
