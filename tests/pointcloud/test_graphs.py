"""Layers under torch.fx, sparse tensors as pytrees."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import pointcloud as pc
from tests.pointcloud.dense_oracle import random_cloud


class Block(pc.SparseModule):
    """Two submanifold layers with a sum, written as the detectors write it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = pc.SubMConv3d(channels, channels, 3, indice_key="s")
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = pc.SubMConv3d(channels, channels, 3, indice_key="s")
        self.relu = nn.ReLU()

    def forward(self, x: pc.SparseConvTensor) -> pc.SparseConvTensor:
        out = self.conv1(x)
        out = out.replace_feature(self.relu(self.bn1(out.features)))
        out = self.conv2(out)
        return out.replace_feature(self.relu(out.features + x.features))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = pc.SparseSequential(pc.SubMConv3d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
        self.block = Block(4)
        self.down = pc.SparseSequential(pc.SparseConv3d(4, 6, 2, 2, indice_key="d"), pc.SparseBatchNorm(6))
        self.pool = pc.pool.SparseMaxPool(3, 3, subm=True)
        self.up = pc.SparseInverseConv3d(6, 4, 2, "d")
        self.join = pc.JoinTable()
        self.last = pc.SparseSequential(pc.SubMConv3d(8, 2, 1), pc.ToDense(), nn.Conv3d(2, 2, 1))

    def forward(self, features: Tensor, indices: Tensor, shape: list[int], batch_size: int) -> Tensor:
        x = pc.SparseConvTensor(features, indices, shape, batch_size)
        x = self.block(self.stem(x))
        y = self.up(self.pool(self.down(x)))
        return self.last(self.join([x, y]))


@pytest.fixture
def x() -> pc.SparseConvTensor:
    return random_cloud((6, 7, 5), 3, dtype=torch.float32)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_a_traced_network_gives_the_same(x: pc.SparseConvTensor, training: bool) -> None:
    net = Net().train(training)
    inputs = (x.features, x.indices, x.spatial_shape, x.batch_size)
    traced = torch.fx.symbolic_trace(copy.deepcopy(net))
    targets = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {"stem.0", "block.conv1", "down.0", "pool", "up", "join", "last.1"} <= targets
    for model in (traced, copy.deepcopy(traced)):
        assert torch.equal(model(*inputs), copy.deepcopy(net)(*inputs))
    traced(*inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())


def test_a_layer_alone_is_a_leaf(x: pc.SparseConvTensor) -> None:
    layer = pc.SubMConv3d(3, 4, 3)
    graph = torch.fx.symbolic_trace(nn.Sequential(layer, pc.SparseReLU()))
    for same in (graph, pickle.loads(pickle.dumps(graph))):
        assert torch.equal(same(x).features, layer(x).features.relu())


def test_pytree_of_a_sparse_tensor(x: pc.SparseConvTensor) -> None:
    y = pc.SparseConv3d(3, 3, 2, 2, indice_key="d")(x)
    leaves, spec = pytree.tree_flatten({"a": y, "b": 2})
    assert leaves[0] is y.features and leaves[1] == 2
    twice = pytree.tree_map(lambda leaf: leaf * 2, y)
    assert twice.coordinates is y.coordinates and torch.equal(twice.features, y.features * 2)
    assert pc.SparseInverseConv3d(3, 3, 2, "d")(twice).features.shape == x.features.shape
    assert spec == pytree.tree_flatten({"a": twice, "b": 3})[1] != pytree.tree_flatten({"a": x, "b": 2})[1]
    away = pytree.tree_map(lambda leaf: leaf.to("meta"), y)
    assert away.indices.device.type == "meta" and away.indice_dict == {}
    shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), y)
    assert shapes.features == tuple(y.features.shape) and repr(shapes)


def test_functional_transforms_see_the_features(x: pc.SparseConvTensor) -> None:
    out, pull = torch.func.vjp(lambda t: t.replace_feature(t.features.sin()), x)
    (grad,) = pull(out.replace_feature(torch.ones_like(out.features)))
    torch.testing.assert_close(grad.features, x.features.cos())
    layer = pc.SubMConv3d(3, 2, 3)
    zero = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
    assert not torch.func.functional_call(layer, zero, (x,)).features.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(x: pc.SparseConvTensor, reentrant: bool) -> None:
    block = Block(3)

    def run(features: Tensor) -> Tensor:
        return block(x.replace_feature(features)).features

    grads = []
    for apply in (run, lambda features: checkpoint(run, features, use_reentrant=reentrant)):
        features = x.features.clone().requires_grad_()
        apply(features).square().sum().backward()
        grads.append(features.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_ddp_finds_the_features(x: pc.SparseConvTensor, options: dict[str, bool], tmp_path: Path) -> None:
    """A parameter is unused only if it is: DDP looks for the graph in the output."""
    net = pc.SparseSequential(pc.SubMConv3d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(net, **options)
        for _ in range(2):
            parallel.zero_grad()
            parallel(x).features.square().sum().backward()
    finally:
        distributed.destroy_process_group()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in net.parameters())


def test_remade_of_its_fields(x: pc.SparseConvTensor) -> None:
    y = pc.SparseConv3d(3, 3, 2, 2, indice_key="d")(x)
    again = dataclasses.replace(y, features=y.features.double())
    assert again.features.dtype == torch.float64 and again.indices is y.indices and again.indice_dict is y.indice_dict


class Down(nn.Module):
    """Takes features and indices; goes down a level and back up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = pc.SubMConv3d(4, 8, 3), nn.BatchNorm1d(8)
        self.down = pc.SparseConv3d(8, 8, 3, 2, 1, indice_key="down")
        self.up = pc.SparseInverseConv3d(8, 4, 3, indice_key="down")

    def forward(self, features: Tensor, indices: Tensor) -> Tensor:
        x = self.stem(pc.SparseConvTensor(features, indices, [9, 9, 9], 1))
        x = x.replace_feature(torch.relu(self.norm(x.features)))
        return self.up(self.down(x)).features + features


def small_clouds() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    clouds = []
    for n in (60, 300, 7):
        cells = torch.unique(torch.randint(0, 9, (n, 3), generator=generator), dim=0)
        indices = torch.cat([torch.zeros(len(cells), 1), cells], 1).int()
        clouds.append((torch.randn(len(cells), 4, generator=generator), indices))
    return clouds


@pytest.fixture(params=["as loaded", "accelerated"])
def down(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    network = Down().eval().requires_grad_(False)
    network.norm.running_mean.normal_()  # type: ignore[union-attr, operator]
    return pc.accelerate(network) if request.param == "accelerated" else network


def test_exported_networks_serve_other_clouds(down: nn.Module) -> None:
    rows = torch.export.Dim("rows", min=2)
    first, *others = small_clouds()
    exported = torch.export.export(down, first, dynamic_shapes=({0: rows}, {0: rows})).module()
    for cloud in (first, *others):
        torch.testing.assert_close(exported(*cloud), down(*cloud), rtol=1e-5, atol=1e-5)
    narrow = torch.export.export(down, first).module()
    torch.testing.assert_close(narrow(*first), down(*first), rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError, match="Guard failed"):
        narrow(*others[0])


def test_graphs_of_proxies_serve_other_clouds(down: nn.Module) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    first, *others = small_clouds()
    graph = make_fx(down)(*first)
    for cloud in (first, *others):
        torch.testing.assert_close(graph(*cloud), down(*cloud), rtol=1e-5, atol=1e-5)


def test_transforms_of_functions_are_refused_rather_than_wrong(down: nn.Module) -> None:
    """Forward-mode derivatives through an operator of torch that has none are zeros, without a word."""
    features, indices = small_clouds()[0]
    with pytest.raises(NotImplementedError, match="gather_gemm has no forward-mode derivative"):
        torch.func.jvp(lambda x: down(x, indices), (features,), (features,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(features, features)
        with pytest.raises(NotImplementedError, match="gather_gemm has no forward-mode derivative"):
            down(dual, indices)
        assert down(features, indices).shape == features.shape  # carries none
    with pytest.raises(RuntimeError, match="trisparse::gather_gemm"):
        torch.vmap(lambda x: down(x, indices))(torch.stack([features, features]))
