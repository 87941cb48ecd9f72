"""Small data sets in the published folders, written from the descriptions of their formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.pointcloud.sweeps import small_sweep


def street(seed: int, n: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(xyz [N, 3], intensity [N], ground [N] bool) of a simulated sweep, thinned out."""
    sweep = small_sweep(seed)
    chosen = np.random.default_rng(seed).permutation(len(sweep.xyz))[:n]
    return sweep.xyz[chosen], sweep.intensity[chosen], sweep.labels[chosen] == 0


def write_semantickitti(root: Path, sequences: dict[str, int] | None = None) -> Path:
    """Scans per sequence; ground is 40 (road), all else 50 (building), each with an instance in the upper bits."""
    for name, n_scans in (sequences or {"00": 2, "08": 1}).items():
        for kind in ("velodyne", "labels"):
            (root / "sequences" / name / kind).mkdir(parents=True)
        for i in range(n_scans):
            xyz, intensity, ground = street(int(name) * 10 + i)
            np.column_stack([xyz, intensity]).astype("<f4").tofile(
                root / "sequences" / name / "velodyne" / f"{i:06d}.bin"
            )
            labels = np.where(ground, 40, 50).astype("<u4") | (np.arange(len(xyz), dtype="<u4") << 16)
            labels[0] = 0
            labels.tofile(root / "sequences" / name / "labels" / f"{i:06d}.label")
    return root


CATEGORIES = (
    "noise animal human.pedestrian.adult human.pedestrian.child human.pedestrian.construction_worker "
    "human.pedestrian.personal_mobility human.pedestrian.police_officer human.pedestrian.stroller "
    "human.pedestrian.wheelchair movable_object.barrier movable_object.debris movable_object.pushable_pullable "
    "movable_object.trafficcone static_object.bicycle_rack vehicle.bicycle vehicle.bus.bendy vehicle.bus.rigid "
    "vehicle.car vehicle.construction vehicle.emergency.ambulance vehicle.emergency.police vehicle.motorcycle "
    "vehicle.trailer vehicle.truck flat.driveable_surface flat.other flat.sidewalk flat.terrain static.manmade "
    "static.other static.vegetation vehicle.ego"
).split()


def write_nuscenes(root: Path) -> Path:
    """Two training scenes and one held-out scene of v1.0-mini; ground is 24, all else 28."""
    tables: dict[str, list[dict[str, object]]] = {
        "category": [{"token": f"c{i}", "name": name, "index": i} for i, name in enumerate(CATEGORIES)],
        "scene": [], "sample": [], "sample_data": [], "lidarseg": [],
    }  # fmt: skip
    (root / "samples" / "LIDAR_TOP").mkdir(parents=True)
    (root / "lidarseg" / "v1.0-mini").mkdir(parents=True)
    for i, scene in enumerate(("scene-0061", "scene-0655", "scene-0103")):
        xyz, intensity, ground = street(i)
        sweep, labels = f"samples/LIDAR_TOP/{i}.pcd.bin", f"lidarseg/v1.0-mini/d{i}_lidarseg.bin"
        ring = np.arange(len(xyz)) % 32
        np.column_stack([xyz, intensity * 255, ring]).astype("<f4").tofile(root / sweep)
        np.where(ground, 24, 28).astype(np.uint8).tofile(root / labels)
        tables["scene"].append({"token": f"s{i}", "name": scene})
        tables["sample"].append({"token": f"p{i}", "scene_token": f"s{i}"})
        tables["sample_data"].append({"token": f"d{i}", "sample_token": f"p{i}", "filename": sweep})
        tables["lidarseg"].append({"token": f"d{i}", "sample_data_token": f"d{i}", "filename": labels})
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    return root


def room(seed: int, n: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """(xyz [N, 3], floor [N] bool) of a floor and a wall."""
    generator = np.random.default_rng(seed)
    xyz = generator.uniform(0, 4, (n, 3))
    floor = generator.random(n) < 0.5
    xyz[floor, 2] = 0
    xyz[~floor, 1] = 0
    return xyz.astype(np.float32), floor


def write_prepared_scannet(root: Path) -> Path:
    """A folder of columns per scene; floor is 1, wall 0, the first point unlabelled."""
    for i, scene in enumerate(("train/scene0000_00", "train/scene0001_00", "val/scene0002_00")):
        xyz, floor = room(i)
        (root / scene).mkdir(parents=True)
        segment = floor.astype(np.int16)
        segment[0] = -1
        np.save(root / scene / "coord.npy", xyz)
        np.save(root / scene / "color.npy", np.zeros((len(xyz), 3), np.uint8))
        np.save(root / scene / "normal.npy", np.zeros((len(xyz), 3), np.float32))
        np.save(root / scene / "segment20.npy", segment)
    return root


def write_scannet_meshes(root: Path) -> Path:
    """Ascii .ply files and lists of scenes; floor is 2, wall 1, the first point 0 in NYU's numbers."""
    for i, (scene, split) in enumerate((("scene0000_00", "train"), ("scene0002_00", "val"))):
        xyz, floor = room(i, 300)
        numbers = np.where(floor, 2, 1)
        numbers[0] = 0
        folder = root / "scans" / scene
        folder.mkdir(parents=True)
        for suffix, column in (("", None), (".labels", numbers)):
            extra = "" if column is None else "property ushort label\n"
            axes = "".join(f"property float {axis}\n" for axis in "xyz")
            header = f"ply\nformat ascii 1.0\nelement vertex {len(xyz)}\n{axes}{extra}end_header\n"
            columns = [*xyz.T] if column is None else [*xyz.T, column]
            rows = [" ".join(f"{value:.6g}" for value in row) for row in zip(*columns)]
            (folder / f"{scene}_vh_clean_2{suffix}.ply").write_text(header + "\n".join(rows) + "\n")
        (root / f"scannetv2_{split}.txt").write_text(f"{scene}\n")
    return root


def write_s3dis(root: Path) -> Path:
    """A published room, a prepared folder and a prepared file for training, a published room held out."""
    for i, area in enumerate(("Area_1", "Area_5")):
        xyz, floor = room(i, 400)
        folder = root / area / "office_1" / "Annotations"
        folder.mkdir(parents=True)
        rows = np.column_stack([xyz, np.zeros((len(xyz), 3))])
        np.savetxt(folder / "floor_1.txt", rows[floor], "%.3f %.3f %.3f %d %d %d")
        np.savetxt(folder / "stairs_1.txt", rows[~floor], "%.3f %.3f %.3f %d %d %d")
    xyz, floor = room(5, 400)
    folder = root / "Area_2" / "hall_1"
    folder.mkdir(parents=True)
    np.save(folder / "coord.npy", xyz)
    np.save(folder / "segment.npy", np.where(floor, 1, 12)[:, None])
    np.save(root / "Area_3_hall_2.npy", np.column_stack([xyz, xyz, np.where(floor, 1, 12)]))
    return root
