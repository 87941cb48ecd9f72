"""Containers, and modules of torch on sparse tensors."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import pointcloud as pc
from tests.pointcloud.dense_oracle import random_cloud


@pytest.fixture
def x(device: str) -> pc.SparseConvTensor:
    return random_cloud((6, 6, 6), 4, dtype=torch.float32, device=device)


def test_sequential_gives_features_to_plain_modules(x) -> None:
    conv, norm, linear = pc.SubMConv3d(4, 8, 3), nn.BatchNorm1d(8), nn.Linear(8, 3)
    net = pc.SparseSequential(conv, norm, nn.ReLU(), nn.Sequential(linear, nn.Sigmoid())).to(x.features.device).eval()
    y = net(x)
    assert y.coordinates is x.coordinates
    torch.testing.assert_close(y.features, linear(norm(conv(x).features).relu()).sigmoid())
    dense = pc.SparseSequential(net, pc.ToDense(), nn.Flatten()).to(x.features.device)(x)
    assert dense.shape == (2, 3 * 216)


def test_ways_to_build_a_sequential() -> None:
    a, b = nn.ReLU(), nn.Tanh()
    assert list(pc.SparseSequential(a, b)._modules) == ["0", "1"]
    assert list(pc.SparseSequential(OrderedDict(first=a, second=b))._modules) == ["first", "second"]
    net = pc.SparseSequential(a, second=b)
    assert list(net._modules) == ["0", "second"]
    net.add(nn.Sigmoid())
    net.add(nn.ELU(), "last")
    assert list(net._modules) == ["0", "second", "2", "last"]
    assert len(net) == 4 and net[0] is a and net[1] is b and net[-1] is net.last and list(net)[1] is b
    with pytest.raises(IndexError):
        net[4]
    with pytest.raises(ValueError, match="name '0' exists already"):
        net.add(a, "0")
    twice = pc.SparseSequential(a, b, a)
    assert len(twice) == 3 and len(list(twice)) == 3
    with pytest.raises(ValueError, match="name 'a' exists already"):
        pc.SparseSequential(OrderedDict(a=a), a=b)


def test_sequential_on_nothing(device: str) -> None:
    empty = pc.SparseConvTensor(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int32), [8, 8, 8], 2).to(device)
    net = pc.SparseSequential(
        pc.SubMConv3d(4, 8, 3), nn.BatchNorm1d(8), pc.SparseBatchNorm(8), nn.ReLU(), nn.Linear(8, 6),
        pc.SparseConv3d(6, 5, 2, 2), pc.SparseMaxPool3d(2),
    ).to(device)  # fmt: skip
    for mode in (True, False):
        y = net.train(mode)(empty)
        assert y.features.shape == (0, 5) and y.spatial_shape == [2, 2, 2]
    for norm in (net[1], net[2]):
        assert not norm.running_mean.any() and norm.num_batches_tracked == 0
    assert pc.SparseGlobalMaxPool()(y).tolist() == [[0] * 5] * 2


def test_modules_of_torch_on_sparse_tensors(x) -> None:
    torch.manual_seed(1)
    norm, plain = pc.SparseBatchNorm(4).to(x.features.device), nn.BatchNorm1d(4).to(x.features.device)
    assert torch.equal(norm(x).features, plain(x.features)) and torch.equal(norm.running_var, plain.running_var)
    assert torch.equal(norm.eval()(x.features), plain.eval()(x.features))
    assert torch.equal(pc.SparseReLU()(x).features, x.features.relu())
    assert torch.equal(pc.SparseReLU()(x.features), x.features.relu())
    assert torch.equal(pc.SparseIdentity()(x).features, x.features)
    assert pc.Identity()(x) is x and pc.RemoveGrid()(x) is x
    assert pc.SparseSequential(pc.Identity(), pc.SparseReLU())(x).coordinates is x.coordinates
    assert list(norm.state_dict()) == list(plain.state_dict())


def test_tables(x) -> None:
    branch = pc.ConcatTable().add(pc.SparseIdentity()).add(pc.SparseReLU())
    joined = pc.SparseSequential(branch, pc.JoinTable())(x)
    torch.testing.assert_close(joined.features, torch.cat([x.features, x.features.relu()], 1))
    added = pc.SparseSequential(branch, pc.AddTable())(x)
    torch.testing.assert_close(added.features, x.features + x.features.relu())
    for table in (pc.JoinTable(), pc.AddTable()):
        with pytest.raises(ValueError, match="same coordinates in the same order"):
            table([x, x.select_by_index(torch.arange(4, device=x.features.device))])


def test_is_spconv_module() -> None:
    ours = (pc.SubMConv3d(1, 1, 3), pc.SparseMaxPool3d(2), pc.ToDense(), pc.SparseSequential(), pc.SparseReLU())
    assert all(map(pc.is_spconv_module, ours))
    assert not any(map(pc.is_spconv_module, (nn.ReLU(), nn.Sequential(), nn.BatchNorm1d(2))))


def test_compiled_network_equals_the_eager_one(device: str) -> None:
    """torch.compile breaks the graph where a map is searched, and compiles the rest."""
    x = random_cloud((6, 6, 6), 4, dtype=torch.float32, device=device)
    net = pc.SparseSequential(
        pc.SubMConv3d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), pc.SparseConv3d(8, 8, 2, 2, indice_key="d"), nn.ReLU(),
        pc.SparseInverseConv3d(8, 4, 2, "d"),
    ).to(device)  # fmt: skip
    net.eval()
    expected = net(x).features
    compiled = torch.compile(net, backend="aot_eager")
    y = compiled(pc.SparseConvTensor(x.features, x.indices, x.spatial_shape, x.batch_size))
    torch.testing.assert_close(y.features, expected)
    got = torch.autograd.grad(y.features.sum(), list(net.parameters()))
    for a, b in zip(got, torch.autograd.grad(expected.sum(), list(net.parameters()))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
