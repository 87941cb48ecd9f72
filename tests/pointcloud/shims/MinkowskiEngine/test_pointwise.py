"""Norms by samples."""

import torch

from pointcloud.shims import MinkowskiEngine as ME


def test_instance_norm_is_by_sample() -> None:
    coords = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]])
    x = ME.SparseTensor(torch.randn(5, 3), coords)
    y = ME.MinkowskiInstanceNorm(3)(x).F
    for part, whole in ((y[:2], x.F[:2]), (y[2:], x.F[2:])):
        expected = torch.nn.functional.instance_norm(whole.T[None], eps=1e-6)[0].T
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(ME.MinkowskiReLU(inplace=True)(x).F, x.F.relu())
