"""`trisparse segment`: clouds in; labelled clouds, pictures and a few lines of numbers out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import pointcloud
from pointcloud.picture import class_colors, draw_labels
from pointcloud.segment import Segmentation, Segmenter
from trisparse import terminal
from trisparse.progress import compiling
from trisparse.zoo import load_pretrained

DTYPES: dict[str, torch.dtype | str | None] = {"fp32": None, "bf16": torch.bfloat16, "auto": "auto"}
SUFFIXES = (".bin", ".pcd", ".ply", ".las", ".laz", ".npy", ".npz", ".txt", ".xyz", ".csv", ".pts")
_UNLABELLED = (84, 90, 99)


@dataclass(frozen=True)
class Reading:
    """How files are read; see `pointcloud.read_points`."""

    format: str | None = None
    columns: str | None = None
    invalid: str = "error"


@dataclass(frozen=True)
class Job:
    """One cloud and where its results go."""

    source: Path
    output: Path | None = None
    picture: Path | None = None


@dataclass(frozen=True)
class Result:
    """What became of one cloud."""

    cloud: pointcloud.PointCloud
    segmentation: Segmentation
    seconds: dict[str, float] = field(default_factory=dict)


def load_segmenter(name_or_path: str, dtype: str) -> Segmenter:
    """A segmenter with the accelerated network, its kernels compiled.

    Raises:
        ValueError: an unknown name, a foreign file, an unknown dtype, a network that does not label clouds.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    segmenter = Segmenter(pointcloud.accelerate(load_pretrained(name_or_path), dtype=DTYPES[dtype]))
    warm_up(segmenter)
    return segmenter


def warm_up(segmenter: Segmenter) -> None:
    """Compile, or load from disk, every kernel that a cloud will need, so that stage times are those of the work."""
    corner = torch.cartesian_prod(*[torch.arange(2.0, 8.0)] * 3)
    with compiling():
        segmenter(pointcloud.PointCloud(corner))


def computes_in(segmenter: Segmenter) -> str:
    """Name of the dtype in which the network's convolutions compute."""
    return "bf16" if segmenter.model.acceleration.dtype == torch.bfloat16 else "fp32"


def read(job: Job, reading: Reading) -> tuple[pointcloud.PointCloud, dict[str, float]]:
    """The cloud and how long it took, after a look at where its results are to go.

    Raises:
        ValueError, OSError: a file that is no cloud, a place that cannot be written to.
    """
    for target in (job.output, job.picture):
        if target is not None:
            _check_target(target, job.source)
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        cloud = pointcloud.read_points(job.source, reading.format, reading.columns, invalid=reading.invalid)
    return cloud, seconds


def label(
    cloud: pointcloud.PointCloud, seconds: Mapping[str, float], segmenter: Segmenter, job: Job, title: str | None = None
) -> Result:
    """Label a cloud and write what the job asks for; each file appears whole or not at all. `seconds`: spent so far."""
    found = segmenter(cloud)
    seconds = {**seconds, **found.seconds}
    if job.output is not None:
        with _timed(seconds, "write"):
            pointcloud.write_ply(job.output, cloud, found.labels, point_colors(found))
    if job.picture is not None:
        with _timed(seconds, "picture"):
            draw_labels(cloud, found.labels, found.class_names, path=job.picture, title=title or job.source.name)
    return Result(cloud, found, seconds)


def point_colors(found: Segmentation) -> torch.Tensor:
    """uint8 [N, 3], the colours of the picture."""
    palette = np.concatenate([class_colors(found.class_names), np.array([_UNLABELLED], dtype=np.uint8)])
    return torch.from_numpy(palette)[found.labels.cpu()]  # -1, unlabelled, is the last


def describe(result: Result, segmenter: Segmenter) -> str:
    """Points, voxels, time per stage and classes found, for a terminal."""
    found = result.segmentation
    stages = list(result.seconds.items())
    stages.append(("total", sum(result.seconds.values())))
    times = terminal.table([(stage, f"{value * 1e3:,.1f}") for stage, value in stages], ("stage", "ms"))
    size = f"{segmenter.voxel_size:g} m"
    threads = torch.get_num_threads()
    lines = [
        f"  {len(result.cloud):,} points, {found.voxels:,} voxels of {size}; "
        f"{computes_in(segmenter)}, {threads} thread{'s' if threads > 1 else ''}",
        "",
        times,
        "",
        class_table(found) if len(result.cloud) else "  no points, no classes",
    ]
    if "unlabelled" in found.counts():
        lines.append(f"  unlabelled: {why_unlabelled(segmenter)}")
    return "\n".join(lines)


def why_unlabelled(segmenter: Segmenter) -> str:
    """The only reason for a point to have no label."""
    return f"nearer to the sensor than {segmenter.min_range:g} m, its own car and beams without an echo"


def class_table(found: Segmentation) -> str:
    """Points of each class that occurs."""
    total = max(len(found.labels), 1)
    rows = [(name, f"{n:,}", f"{100 * n / total:.1f} %") for name, n in found.counts().items()]
    return terminal.table(rows, ("class", "points", "share"))


def plan(sources: Sequence[Path], output: Path | None, picture: Path | None) -> list[Job]:
    """One job per cloud. One file: `output` and `picture` are files. A folder or several files: they are folders.

    Raises:
        ValueError: two clouds whose results would have one name, a folder without clouds, an output folder that is
            also read.
    """
    if len(sources) == 1 and not sources[0].is_dir():
        return [Job(sources[0], output, picture)]
    files = [file for source in sources for file in (_clouds_in(source) if source.is_dir() else [source])]
    for name, folder in (("--output", output), ("--picture", picture)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ValueError(f"{name} must be a folder for more than one cloud, got the file {folder}")
    for source in sources:
        if output is not None and source.is_dir() and output.resolve() == source.resolve():
            raise ValueError(f"--output must be another folder than {source}: its results would be read as clouds")
    taken: dict[str, Path] = {}
    for file in files:
        if file.name in taken:
            raise ValueError(f"{taken[file.name]} and {file} would both be written as {file.name}.ply")
        taken[file.name] = file
    return [
        Job(file, output and output / f"{file.name}.ply", picture and picture / f"{file.name}.png") for file in files
    ]


def make_folders(jobs: Iterable[Job]) -> None:
    """Create the folders that a batch writes to."""
    for folder in {target.parent for job in jobs for target in (job.output, job.picture) if target is not None}:
        folder.mkdir(parents=True, exist_ok=True)


def _clouds_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and path.is_file())
    if not found:
        raise ValueError(f"{folder}: no clouds in this folder; expected files with a suffix of {' '.join(SUFFIXES)}")
    return found


def _check_target(target: Path, source: Path) -> None:
    """What can be known to go wrong is said before the work and not after it."""
    if target.is_dir():
        raise IsADirectoryError(f"{target}: a directory, but a file to write was expected")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: its folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"{target}: its folder {target.parent} is not writable")
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target}: the results would overwrite the cloud they come from")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
