"""A row for each sample, handed to all rows of that sample."""

from __future__ import annotations

import pytest
import torch

from pointcloud.shims import MinkowskiEngine as ME
from tests.pointcloud.shims.MinkowskiEngine.test_convolution import cloud


def test_broadcasts() -> None:
    x = cloud()
    means = ME.MinkowskiGlobalAvgPooling()(x)
    sample = x.C[:, 0].long()
    want = torch.stack([x.F[sample == s].mean(0) for s in (0, 1)])[sample]
    torch.testing.assert_close(ME.MinkowskiBroadcast()(x, means).F, want)
    torch.testing.assert_close(ME.MinkowskiBroadcastAddition()(x, means).F, x.F + want)
    torch.testing.assert_close(ME.MinkowskiBroadcastMultiplication()(x, means).F, x.F * want)
    torch.testing.assert_close(ME.MinkowskiBroadcastConcatenation()(x, means).F, torch.cat([x.F, want], 1))


def test_samples_without_a_row_are_refused() -> None:
    x = cloud()
    first = ME.SparseTensor(torch.zeros(1, 4), torch.zeros(1, 4).int())
    with pytest.raises(ValueError, match="one row for each sample"):
        ME.MinkowskiBroadcastAddition()(x, first)
