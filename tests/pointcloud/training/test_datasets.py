"""Readers of labelled data sets against what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pointcloud.training.datasets import DATASETS, Dataset, open_dataset
from pointcloud.training.datasets.nuscenes import held_out
from pointcloud.training.datasets.scannet import MESHES
from pointcloud.training.datasets.semantickitti import LABELS
from tests.pointcloud.training import dataset_folders as folders

# How each is written, the classes that its test data has, scans for training and held out.
WRITTEN: dict[str, tuple[str, Callable[[Path], Path], tuple[str, str], int, int]] = {
    "semantickitti": ("semantickitti", folders.write_semantickitti, ("road", "building"), 2, 1),
    "nuscenes": ("nuscenes", folders.write_nuscenes, ("driveable_surface", "manmade"), 2, 1),
    "scannet": ("scannet", folders.write_prepared_scannet, ("floor", "wall"), 2, 1),
    "scannet meshes": ("scannet", folders.write_scannet_meshes, ("floor", "wall"), 1, 1),
    "s3dis": ("s3dis", folders.write_s3dis, ("floor", "clutter"), 3, 1),
}


def opened(kind: str, root: Path, split: str = "train") -> Dataset:
    name, write, *_ = WRITTEN[kind]
    return open_dataset(name, write(root), split)


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_layout_reads_as_it_was_written(kind: str, tmp_path: Path) -> None:
    name, write, (low, high), n_train, n_val = WRITTEN[kind]
    root = write(tmp_path)
    train, val = (open_dataset(name, root, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (n_train, n_val)
    assert not set(train.scans) & set(val.scans)
    assert train.class_names == val.class_names
    scan = train[0]
    assert scan.xyz.dtype == np.float32 and scan.labels.dtype == np.int64
    assert np.array_equal(train.labels(0), scan.labels)
    occurring = {train.class_names[c] for c in np.unique(scan.labels[scan.labels >= 0])}
    assert occurring == {low, high}
    ground = scan.labels == train.class_names.index(low)
    if train.indoor:
        assert np.abs(scan.xyz[ground, 2]).max() == 0 and scan.intensity is None
    else:
        xyz, intensity, truth = folders.street(0)
        np.testing.assert_array_equal(scan.xyz, xyz.astype(np.float32))
        scale = 255 if name == "nuscenes" else 1
        np.testing.assert_allclose(scan.intensity, intensity * scale, rtol=1e-6)
        np.testing.assert_array_equal(ground[1:], truth[1:])


def test_unlabelled_points_are_ignored(tmp_path: Path) -> None:
    for kind in ("semantickitti", "scannet", "scannet meshes"):
        scan = opened(kind, tmp_path / kind.replace(" ", ""))[0]
        assert scan.labels[0] == -1 and (scan.labels[1:] >= 0).all()


def test_label_maps_are_the_published_ones() -> None:
    names = LABELS.class_names
    assert {number: names[c] for number, c in LABELS.index.items() if number > 250} == {
        252: "car", 253: "bicyclist", 254: "person", 255: "motorcyclist", 256: "other-vehicle", 257: "other-vehicle",
        258: "truck", 259: "other-vehicle",
    }  # fmt: skip
    assert len(LABELS.index) == 34 and names[LABELS.index[60]] == "road" and LABELS.index[52] == -1
    assert len(names) == 19 and sorted(set(LABELS.index.values())) == list(range(-1, 19))
    assert len(held_out("v1.0-trainval")) == 150 and held_out("v1.0-mini") == {"scene-0103", "scene-0916"}
    assert MESHES.class_names[MESHES.index[39]] == "otherfurniture" and MESHES.index[13] == -1
    assert sorted(set(MESHES.index.values())) == list(range(-1, 20))


def test_nuscenes_has_16_classes_of_32_categories(tmp_path: Path) -> None:
    dataset = opened("nuscenes", tmp_path)
    assert len(dataset.class_names) == 16
    path = tmp_path / "lidarseg/v1.0-mini/d0_lidarseg.bin"
    n = path.stat().st_size
    (np.arange(n) % 32).astype(np.uint8).tofile(path)
    classes = dataset.labels(0)[:32]
    names = ["ignored", *dataset.class_names]
    found = {category: names[c + 1] for category, c in zip(folders.CATEGORIES, classes.tolist())}
    assert {category for category, name in found.items() if name == "pedestrian"} == {
        f"human.pedestrian.{who}" for who in ("adult", "child", "construction_worker", "police_officer")
    }
    assert [category for category, name in found.items() if name == "bus"] == ["vehicle.bus.bendy", "vehicle.bus.rigid"]
    assert sum(name == "ignored" for name in found.values()) == 12
    last_words = {name: category.rpartition(".")[2] for category, name in found.items() if name != "ignored"}
    changed = {"bus": "rigid", "construction_vehicle": "construction", "other_flat": "other"}
    changed |= {"traffic_cone": "trafficcone", "pedestrian": "police_officer"}
    assert last_words == {name: changed.get(name, name) for name in dataset.class_names}


def test_sequences_of_ones_own(tmp_path: Path) -> None:
    root = folders.write_semantickitti(tmp_path, {"00": 1, "03": 1, "08": 1})
    assert open_dataset("semantickitti", root, "val", sequences=["03"]).scans == ["03/velodyne/000000.bin"]
    with pytest.raises(NotADirectoryError, match="99: expected the folder of a sequence"):
        open_dataset("semantickitti", root, "val", sequences=["99"])


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-n_bytes])


def test_scan_and_labels_of_other_lengths(tmp_path: Path) -> None:
    kitti = opened("semantickitti", tmp_path / "k")
    cut(tmp_path / "k/sequences/00/labels/000000.label", 8)
    with pytest.raises(ValueError, match=r"000000\.label: expected 1000 labels, one per point of .*\.bin, got 998"):
        kitti[0]
    cut(tmp_path / "k/sequences/00/labels/000001.label", 3)
    with pytest.raises(ValueError, match="expected labels of 4 bytes each, got 3997 bytes"):
        kitti[1]
    nuscenes = opened("nuscenes", tmp_path / "n")
    cut(tmp_path / "n/lidarseg/v1.0-mini/d0_lidarseg.bin", 1)
    with pytest.raises(ValueError, match=r"lidarseg\.bin: expected 1000 labels.* got 999"):
        nuscenes[0]
    scannet = opened("scannet", tmp_path / "s")
    np.save(tmp_path / "s/train/scene0000_00/segment20.npy", np.zeros(7, np.int16))
    with pytest.raises(ValueError, match=r"segment20\.npy: expected 1200 labels.* got 7"):
        scannet[0]
    np.save(tmp_path / "s/train/scene0001_00/color.npy", np.zeros((7, 3), np.uint8))
    with pytest.raises(ValueError, match=r"color\.npy: expected 1200 rows"):
        scannet[1]


def test_a_label_outside_of_the_map(tmp_path: Path) -> None:
    kitti = opened("semantickitti", tmp_path / "k")
    path = tmp_path / "k/sequences/00/labels/000000.label"
    labels = np.fromfile(path, "<u4")
    labels[5] = 41
    labels.tofile(path)
    with pytest.raises(ValueError, match=r"000000\.label: labels must be among the 34 of the label map .* got 41"):
        kitti[0]
    scannet = opened("scannet", tmp_path / "s")
    np.save(tmp_path / "s/train/scene0000_00/segment20.npy", np.full(1200, 20))
    with pytest.raises(ValueError, match="got 20"):
        scannet[0]
    np.save(tmp_path / "s/train/scene0000_00/segment20.npy", np.full(1200, 0.5))
    with pytest.raises(ValueError, match="must hold integers"):
        scannet[0]


def test_folders_without_labels(tmp_path: Path) -> None:
    folders.write_semantickitti(tmp_path)
    path = tmp_path / "sequences/00/labels/000001.label"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"000001\.label is missing: every scan needs"):
        open_dataset("semantickitti", tmp_path, "train")[1]
    for rest in path.parent.iterdir():
        rest.unlink()
    path.parent.rmdir()
    with pytest.raises(ValueError, match="00: expected the folder labels beside velodyne, which has 2 scans"):
        open_dataset("semantickitti", tmp_path, "train")


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_of_something_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        open_dataset(name, tmp_path, "train")
    with pytest.raises(NotADirectoryError, match="root must be a folder"):
        open_dataset(name, tmp_path / "absent", "train")


def test_nuscenes_tables_of_another_form(tmp_path: Path) -> None:
    folders.write_nuscenes(tmp_path)
    table = tmp_path / "v1.0-mini" / "category.json"
    rows = json.loads(table.read_text())
    rows[4]["name"] = "human.cyclist"
    table.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"category\.json: 'human.cyclist' is not one of the 32"):
        open_dataset("nuscenes", tmp_path, "train")
    table.write_text(json.dumps([{"name": "noise"}]))
    with pytest.raises(ValueError, match="every row must have name, index, got one without index"):
        open_dataset("nuscenes", tmp_path, "train")
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"category\.json is missing"):
        open_dataset("nuscenes", tmp_path, "train")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of semantickitti, .* 'semantikitti'.*semantickitti"):
        open_dataset("semantikitti", tmp_path, "train")
    with pytest.raises(ValueError, match="split must be train or val, got 'test'"):
        open_dataset("s3dis", tmp_path, "test")
