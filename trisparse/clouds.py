"""A run of `trisparse segment`: clouds in; labelled clouds, pictures and a few lines of numbers out."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import pointcloud
from common_models.dtypes import name_of
from common_models.files import replace_atomically
from pointcloud.likeness import DENSITY_VOXEL, unlike_a_sweep
from pointcloud.picture import UNLABELLED, class_colors, draw_labels
from pointcloud.segment import Segmentation, Segmenter
from trisparse import terminal, zoo
from trisparse.dtypes import for_accelerate
from trisparse.output.spool import Spool, check_new
from trisparse.output.stopping import stopped, stopping
from trisparse.progress import compiling

if TYPE_CHECKING:
    from trisparse.commands.segment import SegmentOptions

SUFFIXES = (
    ".bin", ".pcd", ".ply", ".las", ".laz", ".e57", ".pcap", ".npy", ".npz", ".txt", ".xyz", ".csv", ".pts", ".obj",
    ".off",
)  # fmt: skip
# Name in the folder of results, with `.progress` after it, of what an unfinished run keeps for the next one.
PROGRESS = "trisparse-segment"


@dataclass(frozen=True)
class Job:
    """One cloud and where its results go."""

    source: Path
    output: Path | None = None
    picture: Path | None = None

    @property
    def targets(self) -> list[Path]:
        """The files to write."""
        return [target for target in (self.output, self.picture) if target is not None]


@dataclass(frozen=True)
class Result:
    """What became of one cloud."""

    cloud: pointcloud.PointCloud
    segmentation: Segmentation
    seconds: dict[str, float] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


def run(jobs: Sequence[Job], options: SegmentOptions) -> int:
    """Label all clouds; the number of those that failed.

    A run over several clouds keeps in the folder of its results which of them are done, until all are. When it is
    started again with the same settings it does the others.

    Raises:
        ValueError, OSError: what concerns all of them: the network, the places to write to.
        FileExistsError: a result that exists, unless the options say to overwrite, or an unfinished run with other
            settings.
        KeyboardInterrupt: Ctrl-C, or told to end; each file that was written is whole.
    """
    for job in jobs:
        for target in job.targets:
            if len(jobs) > 1:
                target.parent.mkdir(parents=True, exist_ok=True)
            _check_target(target, job.source)
    failed = done = 0
    with ExitStack() as stack:
        progress = _progress(jobs, options, stack)
        finished = set() if progress is None else {mark["cloud"] for mark in progress.marks}
        left = [job for job in jobs if not _is_done(job, finished)]
        if len(left) < len(jobs):
            print(f"{len(jobs) - len(left)} of {len(jobs)} clouds were done before")
        if not finished and not options.overwrite:
            check_new(target for job in jobs for target in job.targets)
        done = len(jobs) - len(left)
        # A file that cannot be read should not wait for the network.
        segmenter = functools.cache(lambda: load_segmenter(options.model, options.dtype))
        stop = stack.enter_context(stopping())
        try:
            for job in left:
                result = _attempt(job, options, segmenter)
                if result is None:
                    failed += 1
                    continue
                done += 1
                if progress is not None:
                    with stop.later():
                        progress.set_mark({"cloud": str(job.source)})
                warn(result, job)
                _tell(result, job, segmenter(), jobs)
        except (KeyboardInterrupt, OSError) as error:
            kept = progress is not None and done > 0
            if kept or isinstance(error, KeyboardInterrupt):
                words = f"{done} of {len(jobs)} clouds are done" if kept else None
                print(f"\n{stopped(words, options.overwrite)}", file=sys.stderr)
            raise
        if progress is not None and not failed:
            with stop.later():
                progress.discard()
    retry = ""
    if progress is not None and done:
        again = "without --overwrite" if options.overwrite else "again"
        retry = f". The others are done: correct the failed ones, then run the same command {again}."
    terminal.tell_failures(failed, len(jobs), "clouds", retry)
    return failed


def _attempt(job: Job, options: SegmentOptions, segmenter: Callable[[], Segmenter]) -> Result | None:
    """The labelled cloud, its files written; None where that failed by the cloud's own fault, which is then reported.

    Raises:
        ValueError: the network cannot be loaded.
        OSError: the results cannot be written.
    """
    try:
        cloud, seconds = read(job, options)
    except (ValueError, OSError) as error:
        terminal.complain(error, debug=options.debug)
        return None
    network = segmenter()
    try:
        return label(cloud, seconds, network, job)
    except ValueError as error:
        terminal.complain(error, debug=options.debug)
        return None


def _progress(jobs: Sequence[Job], options: SegmentOptions, stack: ExitStack) -> Spool | None:
    """What a run over several clouds keeps for the next one; None where there is one cloud or nothing is written."""
    folder = jobs[0].targets[0].parent if jobs[0].targets else None
    if len(jobs) == 1 or folder is None:
        return None
    named = ("model", "dtype", "format", "columns", "invalid")
    settings = {name: getattr(options, name) for name in named}
    settings |= {**zoo.fingerprint(options.model), "clouds": [str(job.source) for job in jobs]}
    settings |= {name: path and str(path) for name, path in (("output", options.output), ("picture", options.picture))}
    return stack.enter_context(Spool(folder / PROGRESS, settings, options.overwrite))


def _is_done(job: Job, finished: set[str]) -> bool:
    return str(job.source) in finished and all(target.exists() for target in job.targets)


def _tell(result: Result, job: Job, segmenter: Segmenter, jobs: Sequence[Job]) -> None:
    """What is printed of a labelled cloud: all numbers of a single one, a line for each of several."""
    if len(jobs) == 1:
        print(f"{job.source}\n{describe(result, segmenter)}")
        for target in job.targets:
            print(f"wrote {target}")
        return
    total = terminal.seconds(sum(result.seconds.values()))
    found = ", ".join(f"{name} {n:,}" for name, n in result.segmentation.counts().items())
    place = f"{jobs.index(job) + 1}/{len(jobs)} {job.source.name}"
    print(f"{place}: {len(result.cloud):,} points, {total}: {found}", flush=True)


def warn(result: Result, job: Job) -> None:
    """One line on stderr for a cloud whose labels may be wrong since it is not what the network learned from."""
    if result.doubts:
        terminal.complain(
            f"{job.source}: labelled, but not like a sweep of a street: {'; '.join(result.doubts)}", kind="warning"
        )


def load_segmenter(name_or_path: str, dtype: str) -> Segmenter:
    """A segmenter with the accelerated network, its kernels compiled.

    Args:
        dtype: one of `trisparse.dtypes.DTYPES`.

    Raises:
        ValueError: an unknown name, a foreign file, a network that does not label clouds.
    """
    network = zoo.load_pretrained(name_or_path)
    segmenter = Segmenter(pointcloud.accelerate(network, dtype=for_accelerate(dtype)))
    warm_up(segmenter)
    return segmenter


def warm_up(segmenter: Segmenter) -> None:
    """Compile, or load from disk, every kernel that a cloud will need, so that stage times are those of the work."""
    corner = torch.cartesian_prod(*[torch.arange(2.0, 8.0)] * 3)
    with compiling():
        segmenter(pointcloud.PointCloud(corner))


def computes_in(segmenter: Segmenter) -> str:
    """Name of the dtype in which the network's convolutions compute."""
    dtype: torch.dtype | None = segmenter.model.acceleration.dtype  # type: ignore[assignment]
    return name_of(dtype or torch.float32)


def read(job: Job, options: SegmentOptions) -> tuple[pointcloud.PointCloud, dict[str, float]]:
    """The cloud and how long it took to read it.

    Raises:
        ValueError, OSError: a file that is not a cloud.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        cloud = pointcloud.read_points(
            job.source,
            options.format,
            options.columns,
            dtype=options.values,
            byte_order=options.byte_order,
            invalid=options.invalid,
        )
    return cloud, seconds


def label(
    cloud: pointcloud.PointCloud, seconds: Mapping[str, float], segmenter: Segmenter, job: Job, title: str | None = None
) -> Result:
    """Label a cloud and write what the job asks for; each file appears whole or not at all. `seconds`: spent so far."""
    found = segmenter(cloud)
    seconds = {**seconds, **found.seconds}
    with _timed(seconds, "check"):
        voxels = found.voxels if segmenter.voxel_size == DENSITY_VOXEL else None
        doubts = unlike_a_sweep(cloud, voxels=voxels, min_range=segmenter.min_range)
    if job.output is not None:
        with _timed(seconds, "write"):
            pointcloud.write_ply(job.output, cloud, found.labels, point_colors(found))
    if job.picture is not None:
        with _timed(seconds, "picture"):
            title = title or job.source.name
            with replace_atomically(job.picture) as partial:
                draw_labels(cloud, found.labels, found.class_names, path=partial, title=title)
    return Result(cloud, found, seconds, doubts)


def point_colors(found: Segmentation) -> torch.Tensor:
    """uint8 [N, 3], the colours of the picture."""
    palette = np.concatenate([class_colors(found.class_names), np.array([UNLABELLED], dtype=np.uint8)])
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


def plan(sources: Sequence[Path], options: SegmentOptions) -> list[Job]:
    """One job per cloud. One file: output and picture are files. A folder or several files: they are folders.

    Raises:
        ValueError: two clouds whose results would have one name, a folder without clouds, an output folder that is
            also read.
        FileNotFoundError: a cloud that does not exist.
    """
    output, picture = options.output, options.picture
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file")
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


def _clouds_in(folder: Path) -> list[Path]:
    found = sorted(
        path for path in folder.iterdir() if path.name.lower().removesuffix(".gz").endswith(SUFFIXES) and path.is_file()
    )
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
