"""Batches of scans: a pure function of the seed and the step, whatever reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointcloud.segment import brightness, sweep_voxels
from pointcloud.tensor import SparseConvTensor
from pointcloud.training.datasets.scan import Dataset, Scan
from pointcloud.training.transforms import mix, vary


@dataclass(frozen=True, eq=False)
class Batch:
    """A share of a step's scans.

    Attributes:
        voxels: features as `sweep_voxels` gives them; without rows where the share has no scans.
        truth: [M] int64, -1 where a voxel has no labelled point.
        scan_of_voxel: [M] int64.
        size: scans in the whole step, over all processes.
    """

    voxels: SparseConvTensor
    truth: Tensor
    scan_of_voxel: Tensor
    size: int


@dataclass(frozen=True)
class Sampling:
    """How the scans of each step are drawn and changed.

    Attributes:
        batch_size: scans per step, over all processes.
        augment: change the scans by `vary` (and, where `mixing` is not "none", half of them by `mix`).
        rank, world: this process takes scans rank, rank + world, … of each step.
        workers: threads that read ahead; their number changes nothing.
    """

    seed: int
    batch_size: int
    voxel_size: float
    augment: bool = True
    mixing: str = "none"
    rank: int = 0
    world: int = 1
    workers: int = 1


def batches(dataset: Dataset, sampling: Sampling, first: int, steps: int) -> Iterator[Batch]:
    """The batches of the steps `first` to `steps`."""
    with ThreadPoolExecutor(max(1, sampling.workers)) as pool:
        waiting: list[list[Future[Scan]]] = []
        ahead = max(1, sampling.workers)
        for step in range(first, min(steps, first + ahead)):
            waiting.append(_requested(pool, dataset, sampling, step))
        try:
            for step in range(first, steps):
                share = [scan.result() for scan in waiting.pop(0)]
                if step + ahead < steps:
                    waiting.append(_requested(pool, dataset, sampling, step + ahead))
                yield collate(share, len(dataset.class_names), sampling.voxel_size, sampling.batch_size)
        finally:
            for ahead_of_time in waiting:
                for future in ahead_of_time:
                    future.cancel()


def _requested(pool: ThreadPoolExecutor, dataset: Dataset, sampling: Sampling, step: int) -> list[Future[Scan]]:
    numbers = range(step * sampling.batch_size, (step + 1) * sampling.batch_size)
    return [pool.submit(sample, dataset, sampling, n) for n in list(numbers)[sampling.rank :: sampling.world]]


def sample(dataset: Dataset, sampling: Sampling, number: int) -> Scan:
    """The scan that comes `number`-th in the training: every epoch is a permutation of all."""
    scan = dataset[_position(dataset, sampling.seed, number)]
    generator = np.random.default_rng([sampling.seed, 1, number])
    if not sampling.augment:
        return scan
    scan = vary(scan, generator, dataset.indoor)
    if sampling.mixing != "none" and generator.random() < 0.5:
        other = dataset[int(generator.integers(len(dataset)))]
        scan = mix(sampling.mixing, scan, vary(other, generator, dataset.indoor), generator)
    return scan


def _position(dataset: Dataset, seed: int, number: int) -> int:
    epoch, place = divmod(number, len(dataset))
    return int(np.random.default_rng([seed, 2, epoch]).permutation(len(dataset))[place])


def collate(share: Sequence[Scan], n_classes: int, voxel_size: float, size: int) -> Batch:
    """The voxels of some scans; the share may be empty.

    Every scan has its voxels by itself, as where it is labelled alone: their lattice begins at the scan's own corner.
    """
    parts = [_voxels(scan, n_classes, voxel_size) for scan in share or [_NOTHING]]
    scan_of_voxel = torch.cat([torch.full((len(truth),), i, dtype=torch.int64) for i, (_, truth) in enumerate(parts)])
    places = torch.cat([voxels.indices[:, 1:] for voxels, _ in parts])
    voxels = SparseConvTensor(
        torch.cat([voxels.features for voxels, _ in parts]),
        torch.cat([scan_of_voxel[:, None].to(places), places], 1),
        [max(extents) for extents in zip(*(voxels.spatial_shape for voxels, _ in parts))],
        len(parts),
    )
    return Batch(voxels, torch.cat([truth for _, truth in parts]), scan_of_voxel, size)


_NOTHING = Scan(np.empty((0, 3), np.float32), np.empty(0, np.int64))


def _voxels(scan: Scan, n_classes: int, voxel_size: float) -> tuple[SparseConvTensor, Tensor]:
    xyz = torch.from_numpy(np.ascontiguousarray(scan.xyz))
    bright = None if scan.intensity is None else brightness(torch.from_numpy(scan.intensity))
    voxels, point_to_voxel = sweep_voxels(xyz, voxel_size, bright)
    return voxels, majority(torch.from_numpy(scan.labels), point_to_voxel, len(voxels.features), n_classes)


def majority(labels: Tensor, point_to_voxel: Tensor, n_voxels: int, n_classes: int) -> Tensor:
    """The most frequent label of each voxel's points, [M]; the lower one where two are as frequent, -1 without any."""
    known = labels >= 0
    pairs = point_to_voxel[known] * n_classes + labels[known]
    counts = torch.bincount(pairs, minlength=n_voxels * n_classes).view(n_voxels, n_classes)
    return torch.where(counts.sum(1) > 0, counts.argmax(1), -1)


def label_counts(dataset: Dataset, most: int = 500) -> np.ndarray:
    """[C] int64: points per class in at most so many scans, evenly spread over the data set."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(np.int64))
    counts = np.zeros(len(dataset.class_names), np.int64)
    for i in chosen.tolist():
        labels = dataset.labels(i)
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))
    return counts


def weights_of(counts: np.ndarray) -> Tensor:
    """[C] float32: each class's share to the power of -0.3, mean 1 over the labelled points.

    Raises:
        ValueError: no point has a label.
    """
    if not counts.sum():
        raise ValueError("the training scans have no labelled point: all their labels are ignored ones")
    share = torch.from_numpy(np.maximum(counts, 1) / counts.sum())
    weights = share**-0.3
    return (weights / (weights * share).sum()).float()
