"""The networks written by hand are folded whole and agree with their reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.harness import Settings
from benchmarks.pointcloud import folding
from benchmarks.pointcloud.workloads import voxelize


@pytest.mark.usefixtures("one_thread")
def test_networks_by_hand() -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(600, 4)).astype(np.float32)
    work = voxelize("ball", points, 0.25, (-4, -4, -4), (4, 4, 4))
    settings = Settings(dtypes=("fp32",), threads=(1,))
    for trial in folding.trials(work, settings):
        expected = trial.reference()[0]
        for competitor in trial.competitors:
            assert competitor.compare is not None
            (got,) = competitor.compare(competitor.build()())
            error = float((got.double() - expected).abs().max() / expected.abs().max())
            assert type(got) is torch.Tensor and error < competitor.tolerance


def test_every_batch_norm_is_folded() -> None:
    import pointcloud

    generator = np.random.default_rng(0)
    work = voxelize("ball", generator.normal(size=(600, 4)).astype(np.float32), 0.25, (-4, -4, -4), (4, 4, 4))
    x = pointcloud.SparseConvTensor(work.features, work.coords, work.shape, 1)
    for make, norms, sums, joins in ((folding.Backbone, 20, 8, 0), (folding.UNet, 48, 16, 8)):
        done = pointcloud.accelerate(make(4).eval(), example=x).acceleration
        assert (done.batch_norms, done.batch_norms_left, done.left) == (norms, (), {})
        assert (done.residuals, done.concatenations) == (sums, joins)
