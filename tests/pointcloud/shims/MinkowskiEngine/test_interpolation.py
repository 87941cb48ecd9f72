"""Interpolation against torch's own on a dense grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pointcloud.shims import MinkowskiEngine as ME


@pytest.mark.parametrize("stride", [1, 2])
def test_interpolation(stride: int) -> None:
    torch.manual_seed(0)
    cells = torch.unique(torch.randint(0, 6, (80, 3)), dim=0)
    coords = torch.cat([torch.zeros(len(cells), 1, dtype=torch.int64), cells * stride], 1)
    x = ME.SparseTensor(torch.randn(len(cells), 4, dtype=torch.float64), coords, tensor_stride=stride)
    points = torch.rand(50, 3, dtype=torch.float64) * 5 * stride
    dense = torch.zeros(1, 4, 6, 6, 6, dtype=torch.float64)
    dense[0, :, cells[:, 0], cells[:, 1], cells[:, 2]] = x.F.T
    where = (points / stride / 5 * 2 - 1).flip(1)[None, :, None, None]  # grid_sample reads the last axis first
    want = F.grid_sample(dense, where, align_corners=True)[0, :, :, 0, 0].T
    got = ME.MinkowskiInterpolation()(x, torch.cat([torch.zeros(50, 1, dtype=torch.float64), points], 1))
    torch.testing.assert_close(got, want)


def test_refusals() -> None:
    with pytest.raises(NotImplementedError, match="return_weights must be False"):
        ME.MinkowskiInterpolation(return_weights=True)
    x = ME.SparseTensor(torch.zeros(1, 4), torch.zeros(1, 4).int())
    with pytest.raises(ValueError, match="tfield must be floating"):
        ME.MinkowskiInterpolation()(x, torch.zeros(2, 4).int())
