"""The sweeps of the demonstration: the real ones at hand, and one that is simulated here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pointcloud import PointCloud, read_points
from pointcloud.picture import draw_labels
from pointcloud.segment import Segmenter
from pointcloud.simulate import CLASSES, simulate_sweep
from pointcloud.training import Confusion
from trisparse.clouds import Job, Result, label
from trisparse.data import data_folder

# Neither a seed that the demonstration network was trained on nor one it was measured on.
SEED = 2_000_000
REAL = {
    "nuscenes": ("nuScenes, one real turn of 32 beams", "pointcloud/nuscenes_lidar_top.pcd.bin"),
    "kitti": ("KITTI, real, 64 beams, the part in front of the camera", "pointcloud/kitti_000008.bin"),
}


@dataclass(frozen=True)
class Scene:
    """A cloud to label; `labels` of the cloud are the truth where it has any."""

    name: str
    title: str
    cloud: PointCloud
    seconds: dict[str, float]


@dataclass(frozen=True)
class Labelled:
    """A scene with its labels and, where the truth is known, how many are right."""

    scene: Scene
    result: Result
    picture: Path
    ply: Path
    accuracy: float | None = None
    mean_iou: float | None = None


def real_scenes() -> tuple[list[Scene], list[str]]:
    """The real sweeps at hand; and what was left out and why."""
    found, skipped = [], []
    for name, (title, place) in REAL.items():
        path = data_folder() / place
        start = time.perf_counter()
        try:
            cloud = read_points(path)
        except (OSError, ValueError) as error:
            skipped.append(f"{title}: {error}; set TRISPARSE_DATA to the folder that holds {place}")
            continue
        found.append(Scene(name, title, cloud, {"read": time.perf_counter() - start}))
    return found, skipped


def simulated_scene() -> Scene:
    """A sweep that is cast here. It needs no data, is the same on every machine, and its true labels are known."""
    start = time.perf_counter()
    cloud = simulate_sweep(SEED, "hdl64").to_cloud()
    return Scene(
        "simulated", "Simulated street, one turn of 64 beams", cloud, {"simulate": time.perf_counter() - start}
    )


def label_scene(scene: Scene, segmenter: Segmenter, folder: Path) -> Labelled:
    """Label one scene. Its PLY goes to `folder`, as will its picture, which `draw_scene` draws."""
    picture, ply = folder / f"{scene.name}.png", folder / f"{scene.name}.ply"
    result = label(scene.cloud, scene.seconds, segmenter, Job(Path(scene.name), ply), scene.title)
    # Truth and answer must number the same classes.
    if scene.cloud.labels is None or segmenter.class_names != CLASSES:
        return Labelled(scene, result, picture, ply)
    truth, answer = scene.cloud.labels, result.segmentation.labels
    confusion = Confusion(len(CLASSES))
    confusion.add(truth, answer)
    return Labelled(scene, result, picture, ply, float((truth == answer).double().mean()), confusion.mean_iou())


def draw_scene(shown: Labelled) -> None:
    """Draw the picture of a labelled scene, apart from its labelling: the numbers need not wait for it."""
    found = shown.result.segmentation
    draw_labels(shown.scene.cloud, found.labels, found.class_names, path=shown.picture, title=shown.scene.title)
