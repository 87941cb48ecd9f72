"""Norms over the cells of each sample, against torch's on the sample's features as [1, C, N]."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import pointcloud as pc


def cloud(dtype: torch.dtype = torch.float64) -> pc.SparseConvTensor:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randperm(4 * 36, generator=generator)[:60]
    keys = keys[keys // 36 != 2]  # the third sample has no cell
    indices = torch.stack([keys // 36, keys // 6 % 6, keys % 6], 1).int()
    features = torch.randn(len(keys), 6, generator=generator, dtype=torch.float64) * 3 + 5
    return pc.SparseConvTensor(features.to(dtype), indices, [6, 6], 4)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_is_torchs_norm_of_each_sample(groups: int) -> None:
    x = cloud()
    norm = (pc.SparseInstanceNorm(6) if groups == 6 else pc.SparseGroupNorm(groups, 6)).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    y = norm(x)
    assert y.coordinates is x.coordinates
    for sample in range(4):
        rows = (x.indices[:, 0] == sample).nonzero().squeeze(1)
        if len(rows):
            expected = F.group_norm(x.features[rows].T[None], groups, norm.weight, norm.bias)[0].T
            assert torch.allclose(y.features[rows], expected, atol=1e-10)


def test_gradients() -> None:
    x = cloud()
    norm = pc.SparseGroupNorm(3, 6).double()
    features = x.features.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: norm(x.replace_feature(f)).features, (features,))


def test_half_and_empty_and_plain() -> None:
    half = pc.SparseGroupNorm(2, 6)(cloud(torch.bfloat16)).features
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.double(), pc.SparseGroupNorm(2, 6).double()(cloud()).features, atol=0.05)
    empty = pc.SparseConvTensor(torch.empty(0, 6), torch.empty(0, 3, dtype=torch.int32), [6, 6], 4)
    assert pc.SparseInstanceNorm(6, affine=False)(empty).features.shape == (0, 6)
    assert list(pc.SparseGroupNorm(2, 6, affine=False).parameters()) == []


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="num_groups must divide"):
        pc.SparseGroupNorm(4, 6)
    with pytest.raises(ValueError, match="8 channels"):
        pc.SparseGroupNorm(4, 8)(cloud())
    with pytest.raises(TypeError, match="SparseConvTensor"):
        pc.SparseGroupNorm(2, 6)(torch.ones(3, 6))


def test_synchronised_norms_replace_those_of_sparse_tensors_too() -> None:
    net = torch.nn.Sequential(pc.SparseBatchNorm(6), pc.SparseReLU(), pc.SparseSequential(torch.nn.BatchNorm1d(6)))
    net[0].running_mean.fill_(2.0)
    converted = pc.SparseSyncBatchNorm.convert_sync_batchnorm(net).eval().double()
    assert isinstance(converted[0], pc.SparseSyncBatchNorm) and type(converted[2][0]) is torch.nn.SyncBatchNorm
    x = cloud()
    expected = F.batch_norm(
        ((x.features - 2) / (1 + 1e-5) ** 0.5).relu(), torch.zeros(6).double(), torch.ones(6).double()
    )
    assert torch.allclose(converted(x).features, expected, atol=1e-10)
