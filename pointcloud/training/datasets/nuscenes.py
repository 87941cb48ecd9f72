"""nuScenes-lidarseg: tables of v1.0-*/ in JSON, sweeps of LIDAR_TOP, a uint8 label per point (Fong et al., 2022)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone", "trailer",
    "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation",
)  # fmt: skip
# The benchmark's class of each category of the tables; the categories that are not listed are ignored.
_CLASS_OF_CATEGORY = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.vegetation": "vegetation",
}
_IGNORED_CATEGORIES = {
    "noise", "animal", "human.pedestrian.personal_mobility", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.debris", "movable_object.pushable_pullable",
    "static_object.bicycle_rack", "vehicle.emergency.ambulance", "vehicle.emergency.police", "static.other",
    "vehicle.ego",
}  # fmt: skip
# Numbers of the scenes that the benchmark holds out, as ranges; all other scenes of v1.0-trainval are for training.
_HELD_OUT = (
    "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
    "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
)
_HELD_OUT_OF_MINI = "103 916"


def held_out(version: str) -> set[str]:
    """Names of the scenes for validation of a version of the tables."""
    names = set()
    for part in (_HELD_OUT_OF_MINI if version.endswith("mini") else _HELD_OUT).split():
        first, _, last = part.partition("-")
        names |= {f"scene-{number:04d}" for number in range(int(first), int(last or first) + 1)}
    return names


def nuscenes(
    root: Path, split: str, *, sequences: Sequence[str] | None = None, label_map: LabelMap | None = None
) -> Dataset:
    """The labelled key frames of a split; `root` is the folder with `v1.0-trainval` (or `-mini`), samples, lidarseg.

    Args:
        sequences: names of scenes instead of the split's.
        label_map: of the label numbers; by default the benchmark's 16 classes by the categories of the tables.

    Raises:
        NotADirectoryError: no such folder.
        FileNotFoundError: a table is missing.
        ValueError: no or several folders of tables, a table of another form, a split without scans.
    """
    check_root(root, "nuScenes")
    tables = _tables_folder(root)
    labels = label_map or _map_of_categories(_rows(tables, "category", "name", "index"), tables / "category.json")
    scenes = {row["token"]: row["name"] for row in _rows(tables, "scene", "token", "name")}
    unknown = sorted(set(sequences or ()) - set(scenes.values()))
    if unknown:
        raise ValueError(f"{tables / 'scene.json'} has no scene {unknown[0]!r}")
    scene_of = {row["token"]: scenes.get(row["scene_token"]) for row in _rows(tables, "sample", "token", "scene_token")}
    data = {row["token"]: row for row in _rows(tables, "sample_data", "token", "sample_token", "filename")}
    apart = held_out(tables.name)
    pairs = []
    for row in _rows(tables, "lidarseg", "sample_data_token", "filename"):
        sweep = data.get(row["sample_data_token"])
        if sweep is None:
            raise ValueError(
                f"{tables / 'lidarseg.json'}: {row['sample_data_token']!r} must be a token of sample_data.json"
            )
        scene = scene_of.get(sweep["sample_token"])
        wanted = scene in sequences if sequences is not None else (scene in apart) == (split == "val")
        if scene is not None and wanted:
            pairs.append((sweep["filename"], row["filename"]))
    pairs.sort()
    check_found(pairs, root, split, f"scenes in {tables.name}/lidarseg.json")

    def read_labels(i: int) -> Array:
        path = root / pairs[i][1]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, which {tables.name}/lidarseg.json names")
        return labels(np.fromfile(path, np.uint8).astype(np.int64), path)

    def read(i: int) -> Scan:
        path = root / pairs[i][0]
        cloud = read_points(path, format="nuscenes")
        classes = read_labels(i)
        check_rows(path, len(cloud), root / pairs[i][1], len(classes))
        assert cloud.intensity is not None
        return Scan(cloud.xyz.numpy(), classes, cloud.intensity.numpy())

    scans = [name for name, _ in pairs]
    return Dataset(f"nuscenes {split}", labels.class_names, scans, read, read_labels)


def _tables_folder(root: Path) -> Path:
    found = sorted(path.parent for path in root.glob("v1.0-*/lidarseg.json"))
    if len(found) != 1:
        got = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{root}: expected one folder v1.0-* with the table lidarseg.json, got {got}")
    return found[0]


def _rows(tables: Path, name: str, *keys: str) -> list[dict[str, Any]]:
    path = tables / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        rows = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} must be a list of rows, got {type(rows).__name__}")
    for row in rows:
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(f"{path}: every row must have {', '.join(keys)}, got one without {missing[0]}")
    return rows


def _map_of_categories(rows: list[dict[str, Any]], path: Path) -> LabelMap:
    index = {}
    for row in rows:
        name = row["name"]
        if name not in _CLASS_OF_CATEGORY and name not in _IGNORED_CATEGORIES:
            raise ValueError(f"{path}: {name!r} is not one of the 32 categories of nuScenes-lidarseg: pass a label map")
        known = _CLASS_OF_CATEGORY.get(name)
        index[int(row["index"])] = IGNORED if known is None else CLASS_NAMES.index(known)
    return LabelMap(CLASS_NAMES, index)
