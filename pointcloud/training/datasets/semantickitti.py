"""SemanticKITTI: sequences/XX/velodyne/*.bin with sequences/XX/labels/*.label (Behley et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointcloud.io import read_points
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
    "car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road", "parking",
    "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole", "traffic-sign",
)  # fmt: skip
# Labels of the files by class of the single-scan benchmark: moving things are what they are when they stand.
_FILE_LABELS = {
    "car": (10, 252), "bicycle": (11,), "motorcycle": (15,), "truck": (18, 258),
    "other-vehicle": (13, 16, 20, 256, 257, 259), "person": (30, 254), "bicyclist": (31, 253),
    "motorcyclist": (32, 255), "road": (40, 60), "parking": (44,), "sidewalk": (48,), "other-ground": (49,),
    "building": (50,), "fence": (51,), "vegetation": (70,), "trunk": (71,), "terrain": (72,), "pole": (80,),
    "traffic-sign": (81,),
}  # fmt: skip
_UNLABELLED = (0, 1, 52, 99)
LABELS = LabelMap(
    CLASS_NAMES,
    dict.fromkeys(_UNLABELLED, IGNORED)
    | {number: i for i, name in enumerate(CLASS_NAMES) for number in _FILE_LABELS[name]},
)
SPLITS = {"train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"), "val": ("08",)}


def semantickitti(
    root: Path, split: str, *, sequences: Sequence[str] | None = None, label_map: LabelMap = LABELS
) -> Dataset:
    """The scans of the sequences of a split; `root` is the folder with `sequences`, or that folder itself.

    Args:
        sequences: names of folders instead of the split's.

    Raises:
        NotADirectoryError: no such folder.
        ValueError: a split without scans, or a sequence without the folder `labels`.
    """
    check_root(root, "SemanticKITTI")
    base = root / "sequences" if (root / "sequences").is_dir() else root
    names = SPLITS[split] if sequences is None else tuple(sequences)
    files: list[Path] = []
    for name in names:
        folder = base / name
        if not folder.is_dir():
            if sequences is not None:
                raise NotADirectoryError(f"{folder}: expected the folder of a sequence")
            continue  # a part of the data set was downloaded
        found = sorted((folder / "velodyne").glob("*.bin"))
        if found and not (folder / "labels").is_dir():
            raise ValueError(f"{folder}: expected the folder labels beside velodyne, which has {len(found)} scans")
        files += found
    check_found(files, root, split, f"sequences/{{{','.join(names)}}}/velodyne/*.bin")

    def label_file(i: int) -> Path:
        return files[i].parent.parent / "labels" / f"{files[i].stem}.label"

    def read_labels(i: int) -> Array:
        return label_map(read_label_file(label_file(i)), label_file(i))

    def read(i: int) -> Scan:
        cloud = read_points(files[i], format="kitti")
        labels = read_labels(i)
        check_rows(files[i], len(cloud), label_file(i), len(labels))
        assert cloud.intensity is not None
        return Scan(cloud.xyz.numpy(), labels, cloud.intensity.numpy())

    scans = [path.relative_to(base).as_posix() for path in files]
    return Dataset(f"semantickitti {split}", label_map.class_names, scans, read, read_labels)


def read_label_file(path: Path) -> Array:
    """Semantic labels int64 [N]: the lower 16 bits of each uint32; the upper ones count instances.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a size that is no multiple of 4 bytes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: every scan needs a label file of its name")
    size = path.stat().st_size
    if size % 4:
        raise ValueError(f"{path}: expected labels of 4 bytes each, got {size} bytes")
    return (np.fromfile(path, "<u4") & 0xFFFF).astype(np.int64)
