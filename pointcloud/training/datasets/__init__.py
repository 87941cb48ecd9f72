"""Labelled data sets in their published folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from common_models.names import did_you_mean
from pointcloud.training.datasets.nuscenes import nuscenes
from pointcloud.training.datasets.s3dis import s3dis
from pointcloud.training.datasets.scan import IGNORED, Dataset, LabelMap, Scan
from pointcloud.training.datasets.scannet import scannet
from pointcloud.training.datasets.semantickitti import semantickitti

__all__ = ["DATASETS", "IGNORED", "Dataset", "LabelMap", "Scan", "open_dataset"]

DATASETS = {"semantickitti": semantickitti, "nuscenes": nuscenes, "scannet": scannet, "s3dis": s3dis}


def open_dataset(
    name: str, root: str | os.PathLike[str], split: str, *, sequences: Sequence[str] | None = None
) -> Dataset:
    """The scans of a data set's split; no scan is read yet.

    Args:
        name: one of DATASETS.
        root: its folder, as published (or, for ScanNet and S3DIS, as Pointcept prepares it).
        split: "train" or "val", the official ones.
        sequences: what belongs to the split instead: sequences, scenes or areas.

    Raises:
        NotADirectoryError, FileNotFoundError: no such folder or table.
        ValueError: an unknown name or split, or a split without scans.
    """
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}{did_you_mean(name, DATASETS)}")
    if split not in ("train", "val"):
        raise ValueError(f"split must be train or val, got {split!r}")
    return DATASETS[name](Path(root), split, sequences=sequences)
