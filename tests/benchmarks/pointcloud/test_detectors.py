"""The detectors' encoders on a small cloud: every competitor computes what plain torch does, and wrong weights show."""

from __future__ import annotations

import pytest
import torch

import pointcloud
from benchmarks.harness import Settings
from benchmarks.pointcloud import detectors


def small(sweeps: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sweeps)
    cells = torch.randint(0, 20, (300, 3), generator=generator).unique(dim=0)
    indices = torch.cat([torch.zeros(len(cells), 1, dtype=torch.long), cells], 1).int()
    return indices, torch.randn(len(cells), 5, generator=generator)


def test_every_competitor_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "voxels", small)
    trials = list(detectors.trials(type("Work", (), {"name": "small"})(), Settings(threads=(1,))))
    assert [trial.shape.split(",")[0] for trial in trials] == ["VoxelBackBone8x"] * 2 + ["VoxelResBackBone8x"] * 2
    for trial in trials[1:3]:
        right = trial.reference()[0]
        assert right.shape[1] == 128 and float(right.abs().max()) > 0.1
        for competitor in trial.competitors:
            try:
                call = competitor.build()
            except detectors.peers.Unavailable:
                continue
            with detectors.peers.one_thread():
                out = call()
            error = (competitor.compare(out)[0].double() - right).abs().max() / right.abs().max()
            assert error <= competitor.tolerance, (trial.shape, competitor.name, competitor.dtype)


def test_the_reference_sees_wrong_weights() -> None:
    plan = detectors.layers(5, residual=True)
    indices, features = small(1)
    network = detectors.encoder(pointcloud, plan)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    right = detectors.reference(plan, weights, indices, features)[0]
    first = next(name for name, value in weights.items() if value.ndim == 5)
    weights[first] = weights[first].flip(2)
    assert not torch.allclose(detectors.reference(plan, weights, indices, features)[0], right, atol=1e-3)


def test_real_voxels(data_dir: object) -> None:
    one, ten = detectors.voxels(1)[0], detectors.voxels(10)[0]
    assert len(one) < len(ten) < 10 * len(one)
    assert bool((ten[:, 1:] < torch.tensor(detectors.SHAPE)).all()) and len(ten.unique(dim=0)) == len(ten)
