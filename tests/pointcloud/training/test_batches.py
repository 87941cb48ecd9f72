"""Batches: what they hold, and that nothing but seed and step decides it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointcloud.segment import brightness, sweep_voxels
from pointcloud.training.batches import Sampling, batches, collate, label_counts, majority, sample, weights_of
from pointcloud.training.datasets import Dataset, Scan
from tests.pointcloud.sweeps import small_sweep

NAMES = ("a", "b", "c")


def scans(n: int) -> Dataset:
    found = []
    for i in range(n):
        sweep = small_sweep(i)
        labels = sweep.labels.astype(np.int64) % 4 - 1
        found.append(Scan(sweep.xyz, labels, None if i == 1 else sweep.intensity))
    return Dataset("made up", NAMES, [str(i) for i in range(n)], found.__getitem__)


def test_majority() -> None:
    generator = np.random.default_rng(0)
    labels, voxel = generator.integers(-1, 3, 400), generator.integers(0, 50, 400)
    labels[voxel == 7] = -1
    found = majority(torch.from_numpy(labels), torch.from_numpy(voxel), 51, 3)
    for m in range(51):
        inside = [label for label in labels[voxel == m] if label >= 0]
        assert int(found[m]) == (max(sorted(set(inside)), key=inside.count) if inside else -1)


def test_a_scan_is_in_a_batch_as_it_is_alone() -> None:
    data = scans(2)
    batch = collate([data[0], data[1]], 3, 0.4, 2)
    for i in range(2):
        bright = None if data[i].intensity is None else brightness(torch.from_numpy(data[i].intensity))  # type: ignore[arg-type]
        alone, of_point = sweep_voxels(torch.from_numpy(data[i].xyz), 0.4, bright)
        rows = batch.scan_of_voxel == i
        assert torch.equal(batch.voxels.features[rows], alone.features)
        assert torch.equal(batch.voxels.indices[rows, 1:], alone.indices[:, 1:])
        expected = majority(torch.from_numpy(data[i].labels), of_point, len(alone.features), 3)
        assert torch.equal(batch.truth[rows], expected)


def test_no_scans() -> None:
    batch = collate([], 3, 0.4, 2)
    assert batch.voxels.features.shape == (0, 6) and len(batch.truth) == 0 and batch.size == 2


def test_every_epoch_has_every_scan() -> None:
    data = scans(5)
    plan = Sampling(3, 2, 0.4, augment=False)
    for epoch in range(2):
        seen = {id(sample(data, plan, 5 * epoch + i)) for i in range(5)}
        assert seen == {id(data[i]) for i in range(5)}


@pytest.mark.parametrize("mixing", ["none", "polar", "laser"])
def test_processes_workers_and_first_steps_divide_the_same_batches(mixing: str) -> None:
    data = scans(3)
    whole = list(batches(data, Sampling(1, 3, 0.8, mixing=mixing), 0, 3))
    later = list(batches(data, Sampling(1, 3, 0.8, mixing=mixing, workers=4), 1, 3))
    assert len(later) == 2
    for a, b in zip(whole[1:], later):
        assert torch.equal(a.voxels.features, b.voxels.features) and torch.equal(a.truth, b.truth)
    shares = [list(batches(data, Sampling(1, 3, 0.8, mixing=mixing, rank=r, world=2), 0, 3)) for r in range(2)]
    for step, batch in enumerate(whole):
        for scan in range(3):
            share = shares[scan % 2][step]
            rows, theirs = batch.scan_of_voxel == scan, share.scan_of_voxel == scan // 2
            assert torch.equal(batch.voxels.features[rows], share.voxels.features[theirs])
    other = next(batches(data, Sampling(2, 3, 0.8, mixing=mixing), 0, 1))
    assert not torch.equal(whole[0].voxels.features[:50], other.voxels.features[:50])


def test_counts_leave_out_what_is_ignored() -> None:
    data = scans(3)
    labels = np.concatenate([data[i].labels for i in range(3)])
    counts = label_counts(data)
    assert counts.tolist() == [int((labels == c).sum()) for c in range(3)]
    ends = np.concatenate([data[0].labels, data[2].labels])
    assert label_counts(data, most=2).tolist() == [int((ends == c).sum()) for c in range(3)]
    weights = weights_of(np.array([1, 0, 99]))
    assert weights[1] == weights[0] > weights[2]
    with pytest.raises(ValueError, match="no labelled point"):
        weights_of(np.zeros(3, np.int64))
