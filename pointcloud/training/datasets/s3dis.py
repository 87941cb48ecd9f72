"""S3DIS: Area_X/ROOM/Annotations/CLASS_N.txt as published, or prepared .npy files (Armeni et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointcloud.training.datasets.rooms import read_classes, read_folder
from pointcloud.training.datasets.scan import IGNORED, Array, Dataset, LabelMap, Scan, check_found, check_root, load_npy

CLASS_NAMES = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)  # fmt: skip
LABELS = LabelMap(CLASS_NAMES, {**{i: i for i in range(13)}, -1: IGNORED, 255: IGNORED})
SPLITS = {"train": ("Area_1", "Area_2", "Area_3", "Area_4", "Area_6"), "val": ("Area_5",)}


def s3dis(root: Path, split: str, *, sequences: Sequence[str] | None = None, label_map: LabelMap = LABELS) -> Dataset:
    """The rooms of a split; Area 5 is held out.

    Three layouts: `Area_X/ROOM/Annotations/CLASS_N.txt` with rows of x y z r g b; `Area_X/ROOM/` with coord.npy and
    segment.npy; `Area_X_ROOM.npy` with rows of x y z r g b label. Colours are not used.

    Args:
        sequences: names of areas instead of the split's.
        label_map: of the numbers in prepared files. Published files bear their class in their name: one that is no
            class (stairs) is clutter.

    Raises:
        NotADirectoryError: no such folder.
        ValueError: a split without rooms.
    """
    check_root(root, "S3DIS")
    areas = SPLITS[split] if sequences is None else tuple(sequences)
    rooms: list[Path] = []
    for area in areas:
        if sequences is not None and not (root / area).is_dir() and not list(root.glob(f"{area}_*.npy")):
            raise NotADirectoryError(f"{root / area}: expected the folder of an area")
        rooms += sorted(path for path in (root / area).glob("*") if path.is_dir() and _is_room(path))
        rooms += sorted(root.glob(f"{area}_*.npy"))
    check_found(rooms, root, split, f"{{{','.join(areas)}}}/ROOM/Annotations/*.txt or coord.npy, or AREA_ROOM.npy")

    def read(i: int) -> Scan:
        room = rooms[i]
        if room.suffix == ".npy":
            rows = load_npy(room, 7)
            return Scan(rows[:, :3].astype(np.float32), label_map(rows[:, 6].astype(np.int64), room))
        if (room / "coord.npy").is_file():
            return read_folder(room, room / "segment.npy", label_map)
        return _read_annotations(room / "Annotations", label_map)

    def read_labels(i: int) -> Array:
        prepared = rooms[i] / "segment.npy"
        return read_classes(prepared, label_map) if prepared.is_file() else read(i).labels

    scans = [path.relative_to(root).as_posix() for path in rooms]
    return Dataset(f"s3dis {split}", label_map.class_names, scans, read, read_labels, indoor=True)


def _is_room(path: Path) -> bool:
    return (path / "coord.npy").is_file() or (path / "Annotations").is_dir()


def _read_annotations(folder: Path, label_map: LabelMap) -> Scan:
    names = label_map.class_names
    if "clutter" not in names:
        raise ValueError(f"{folder}: label_map must have the class clutter for objects of no class, got {names}")
    parts, classes = [], []
    for path in sorted(folder.glob("*.txt")):
        name = path.stem.rpartition("_")[0]
        rows = _read_rows(path)
        parts.append(rows[:, :3].astype(np.float32))
        classes.append(np.full(len(rows), names.index(name if name in names else "clutter"), np.int64))
    if not parts:
        raise ValueError(f"{folder}: expected files CLASS_N.txt, got none")
    return Scan(np.concatenate(parts), np.concatenate(classes))


def _read_rows(path: Path) -> Array:
    try:
        rows = np.loadtxt(path, np.float64, ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected rows of x y z r g b: {error}") from error
    if rows.size == 0:
        return rows.reshape(0, 6)
    if rows.shape[1] != 6:
        raise ValueError(f"{path}: expected rows of x y z r g b, got {rows.shape[1]} columns")
    return rows
