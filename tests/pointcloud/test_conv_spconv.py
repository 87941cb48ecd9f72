"""The same values as spconv's CPU build, with copied weights; the same names, arguments and checkpoints.

spconv's CPU build is right on one thread only (it shares a pointer between OpenMP threads), in training mode only (its
eval mode rejects biases), and for grids below 2**31 cells.
"""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from torch import nn

import pointcloud as pc
from tests.pointcloud.checkpoints.published import moving_loader
from tests.pointcloud.checkpoints.test_convert import written_by
from tests.pointcloud.dense_oracle import random_cloud

sp = pytest.importorskip("spconv.pytorch", reason="spconv is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {1: (40,), 2: (14, 15), 3: (9, 11, 10), 4: (5, 6, 4, 5)}
LAYERS = [
    *(("SubMConv", n, (4, 5, 3), {}) for n in (1, 2, 3, 4)),
    ("SubMConv", 3, (4, 5, 5), {}), ("SubMConv", 3, (4, 5, (3, 1, 1)), {}), ("SubMConv", 3, (4, 5, 1), {}),
    ("SubMConv", 3, (4, 5, 3), {"padding": 1, "dilation": 2}), ("SubMConv", 2, (4, 5, 3), {"bias": False}),
    *(("SparseConv", n, (4, 5, 3, 2, 1), {}) for n in (1, 2, 3, 4)),
    ("SparseConv", 3, (4, 5, 2, 2), {}), ("SparseConv", 3, (4, 5, 4, 2, 1), {}), ("SparseConv", 3, (4, 5, 1), {}),
    ("SparseConv", 3, (4, 5, (3, 1, 1), (2, 1, 1)), {}), ("SparseConv", 3, (4, 5, 3, 2, (0, 1, 1)), {}),
    ("SparseConv", 2, (4, 5, 3, 1, 1, 2), {}),
    *(("SparseConvTranspose", n, (4, 5, 3, 2, 1), {}) for n in (1, 2, 3)),
    ("SparseConvTranspose", 3, (4, 5, 2, 2), {}),
]  # fmt: skip


def name_of(case: tuple) -> str:
    family, ndim, args, kwargs = case
    return f"{family}{ndim}d{args}{kwargs or ''}".replace(" ", "")


def theirs_of(x: pc.SparseConvTensor):
    return sp.SparseConvTensor(x.features, x.indices, x.spatial_shape, x.batch_size)


def assert_same(ours: pc.SparseConvTensor, theirs) -> None:
    """Same grid, same cells, same features, whatever the order of the rows."""
    assert ours.spatial_shape == list(theirs.spatial_shape) and ours.batch_size == theirs.batch_size
    (a, a_order), (b, b_order) = (sorted_cells(x.indices) for x in (ours, theirs))
    assert torch.equal(a, b)
    torch.testing.assert_close(ours.features[a_order], theirs.features[b_order], rtol=1e-4, atol=1e-5)


def sorted_cells(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.from_numpy(np.lexsort(indices.numpy().T[::-1]).copy())
    return indices[order], order


def in_training_mode(net: nn.Module, x):
    with torch.no_grad():
        return net.train()(x)


@pytest.mark.parametrize("case", LAYERS, ids=name_of)
def test_layers_with_copied_weights(case) -> None:
    family, ndim, args, kwargs = case
    ours = getattr(pc, f"{family}{ndim}d")(*args, **kwargs)
    theirs = getattr(sp, f"{family}{ndim}d")(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    x = random_cloud(SHAPES[ndim], 4, share=0.2, dtype=torch.float32)
    assert_same(ours(x), in_training_mode(theirs, theirs_of(x)))


@pytest.mark.parametrize(("ndim", "args"), [(1, (2,)), (2, (3, 2, 1)), (3, (2,)), (3, (3, 2, 1)), (4, (2,))], ids=str)
def test_max_pool(ndim: int, args: tuple) -> None:
    x = random_cloud(SHAPES[ndim], 4, share=0.2, dtype=torch.float32)
    theirs = in_training_mode(getattr(sp, f"SparseMaxPool{ndim}d")(*args), theirs_of(x))
    assert_same(getattr(pc, f"SparseMaxPool{ndim}d")(*args, spconv_compat=True)(x), theirs)
    positive = x.replace_feature(x.features.abs())
    theirs = in_training_mode(getattr(sp, f"SparseMaxPool{ndim}d")(*args), theirs_of(positive))
    assert_same(getattr(pc, f"SparseMaxPool{ndim}d")(*args)(positive), theirs)


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_inverse(ndim: int) -> None:
    def build(lib):
        layers = {
            n: getattr(lib, f"{n}{ndim}d") for n in ("SubMConv", "SparseConv", "SparseInverseConv", "SparseMaxPool")
        }
        return lib.SparseSequential(
            layers["SubMConv"](4, 8, 3, indice_key="sub"), nn.BatchNorm1d(8), nn.ReLU(),
            layers["SparseConv"](8, 6, 3, 2, 1, indice_key="down"),
            layers["SparseMaxPool"](2, indice_key="pool"), layers["SparseInverseConv"](6, 6, 2, "pool"),
            layers["SparseInverseConv"](6, 5, 3, indice_key="down"), layers["SubMConv"](5, 3, 3, indice_key="sub"),
        )  # fmt: skip

    ours, theirs = build(pc), build(sp)
    ours.load_state_dict(theirs.state_dict())
    positive = random_cloud(SHAPES[ndim], 4, share=0.3, dtype=torch.float32)
    ours[4].spconv_compat = True
    y = ours.train()(positive)
    assert y.coordinates is positive.coordinates
    assert_same(y, in_training_mode(theirs, theirs_of(positive)))


def u_net(lib) -> nn.Module:
    """A small residual U-Net, as code for spconv is written."""

    class Block(lib.SparseModule):
        def __init__(self, n_in: int, n_out: int, key: str) -> None:
            super().__init__()
            self.body = lib.SparseSequential(
                nn.BatchNorm1d(n_in), nn.ReLU(),
                lib.SubMConv3d(n_in, n_out, kernel_size=3, padding=1, bias=False, indice_key=key),
                nn.BatchNorm1d(n_out), nn.ReLU(),
                lib.SubMConv3d(n_out, n_out, kernel_size=3, padding=1, bias=False, indice_key=key),
            )  # fmt: skip
            self.skip = lib.SparseSequential(lib.SubMConv3d(n_in, n_out, kernel_size=1, bias=False))

        def forward(self, x):
            y = self.body(x)
            return y.replace_feature(y.features + self.skip(x).features)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = lib.SparseSequential(lib.SubMConv3d(4, 8, 3, padding=1, bias=False, indice_key="subm1"))
            self.enc = nn.ModuleList([Block(8, 8, "subm1"), Block(16, 16, "subm2"), Block(24, 24, "subm3")])
            self.down = nn.ModuleList(
                [lib.SparseConv3d(8, 16, 2, 2, bias=False, indice_key="spconv1"),
                 lib.SparseConv3d(16, 24, 2, 2, bias=False, indice_key="spconv2")]
            )  # fmt: skip
            self.up = nn.ModuleList(
                [lib.SparseInverseConv3d(24, 16, 2, indice_key="spconv2", bias=False),
                 lib.SparseInverseConv3d(16, 8, 2, indice_key="spconv1", bias=False)]
            )  # fmt: skip
            self.dec = nn.ModuleList([Block(32, 16, "subm2"), Block(16, 8, "subm1")])

        def forward(self, x):
            x = self.stem(x)
            skips = []
            for i, block in enumerate(self.enc):
                x = block(x)
                if i < 2:
                    skips.append(x)
                    x = self.down[i](x)
            for up, block in zip(self.up, self.dec):
                x, skip = up(x), skips.pop()
                x = block(x.replace_feature(torch.cat([x.features, skip.features], 1)))
            return x

    return UNet()


def test_u_net() -> None:
    ours, theirs = u_net(pc), u_net(sp)
    ours.load_state_dict(theirs.state_dict())
    x = random_cloud((24, 20, 16), 4, share=0.1, dtype=torch.float32)
    y, z = ours.train()(x), in_training_mode(theirs, theirs_of(x))
    assert_same(y, z)
    # In eval mode too, with the statistics that both have just measured.
    assert_same(ours.eval()(x), theirs.eval()(theirs_of(x)))
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_dense_and_sparse_add() -> None:
    from spconv.pytorch.functional import sparse_add

    a, b = (random_cloud((6, 7, 5), 3, dtype=torch.float32) for _ in range(2))
    assert torch.equal(a.dense(), theirs_of(a).dense())
    assert torch.equal(a.dense(False), theirs_of(a).dense(False))
    assert_same(pc.sparse_add(a, b), sparse_add(theirs_of(a), theirs_of(b)))
    grid = a.dense(False)
    assert_same(pc.SparseConvTensor.from_dense(grid), sp.SparseConvTensor.from_dense(grid))


FAMILIES = ("SubMConv", "SparseConv", "SparseConvTranspose", "SparseInverseConv", "SparseMaxPool", "SparseAvgPool")


@pytest.mark.parametrize(
    "name",
    [
        *(f"{f}{n}d" for f in FAMILIES for n in (1, 2, 3, 4) if f"{f}{n}d" != "SparseAvgPool4d"),
        "SparseConvTensor", "SparseGlobalMaxPool", "SparseGlobalAvgPool", "SparseModule", "ToDense",
    ],
)  # fmt: skip
def test_arguments(name: str) -> None:
    """Every argument of spconv's, in its order and with its default; ours may have more, by keyword."""
    ours, theirs = (list(inspect.signature(getattr(lib, name).__init__).parameters.values()) for lib in (pc, sp))
    for a, b in zip(ours, theirs, strict=False):
        assert (a.name, a.kind, a.default) == (b.name, b.kind, b.default)
    assert len(ours) >= len(theirs)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


def test_names() -> None:
    ignored = {"functional", "ops", "conv", "core", "modules", "pool", "tables", "identity"}  # modules
    public = {
        n for n, v in vars(sp).items() if not n.startswith("_") and getattr(v, "__module__", "").startswith("spconv")
    }
    assert public - ignored - set(pc.__all__) == {"assign_name_for_sparse_modules"}
    methods = {n for n in vars(sp.SparseConvTensor) if not n.startswith("_")}
    assert {n for n in methods if not hasattr(pc.SparseConvTensor, n)} == set()


@pytest.mark.parametrize("record", [False, True])
def test_checkpoints_load_strictly_both_ways(record: bool) -> None:
    def build(lib):
        return lib.SparseSequential(
            lib.SubMConv3d(4, 8, 3), nn.BatchNorm1d(8), lib.SparseConv3d(8, 8, 2, 2, record_voxel_count=record),
            lib.SparseMaxPool3d(2, record_voxel_count=record), lib.SparseInverseConv3d(8, 4, 2, "k", bias=False),
            lib.SparseBatchNorm(4),
        )  # fmt: skip

    ours, theirs = build(pc), build(sp)
    assert {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_kernel_of_size_one_is_kept_as_spconv_keeps_it() -> None:
    """spconv takes the memory [Cout, 1, 1, 1, Cin] of such a weight for [Cin, Cout]."""
    theirs = sp.SubMConv3d(4, 6, 1, bias=False)
    x = random_cloud(SHAPES[3], 4, dtype=torch.float32)
    expected = in_training_mode(theirs, theirs_of(x)).features
    torch.testing.assert_close(expected, x.features @ theirs.weight.view(4, 6))
    ours = pc.SubMConv3d(4, 6, 1, bias=False)
    for state in (theirs.state_dict(), dict(theirs.state_dict()), ours.state_dict() | theirs.state_dict()):
        nn.init.zeros_(ours.weight)
        ours.load_state_dict(state)
        assert torch.equal(ours.weight, theirs.weight)
        torch.testing.assert_close(ours(x).features, expected)
        torch.testing.assert_close(ours(x).features, x.features @ ours.output_first_weight.view(6, 4).T)
    assert torch.equal(pc.convert_weight(theirs.weight, "KERNEL_ONE"), ours.output_first_weight)
    nn.init.zeros_(theirs.weight)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(in_training_mode(theirs, theirs_of(x)).features, expected)
    ours.output_first_weight = 2 * ours.output_first_weight
    torch.testing.assert_close(ours(x).features, 2 * expected)
    assert ours.weight.requires_grad and torch.equal(ours.weight, 2 * theirs.weight)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD], ids=lambda c: c.__name__)
def test_a_training_resumes_with_spconvs_state_of_the_optimiser(optimizer) -> None:
    """spconv cannot train on a CPU, so its layer is its defining equation: a product with the memory of its weight."""
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    theirs, ours = sp.SubMConv3d(4, 6, 1), pc.SubMConv3d(4, 6, 1)
    x = random_cloud(SHAPES[3], 4, dtype=torch.float32)
    target = torch.randn(len(x.features), 6)
    step_of = {
        theirs: lambda: x.features @ theirs.weight.view(4, 6) + theirs.bias,
        ours: lambda: ours(x).features,
    }
    optimizers = {layer: optimizer(layer.parameters(), 0.05, **options) for layer in step_of}

    def train(layer) -> None:
        for _ in range(3):
            optimizers[layer].zero_grad()
            (step_of[layer]() - target).square().mean().backward()
            optimizers[layer].step()

    train(theirs)
    ours.load_state_dict(theirs.state_dict())
    optimizers[ours].load_state_dict(copy.deepcopy(optimizers[theirs].state_dict()))
    train(theirs), train(ours)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", [lambda layer: layer, copy.deepcopy, lambda layer: layer.double().float()])
def test_state_dict_of_a_kernel_of_size_one_shares_memory(change) -> None:
    """What averages or clips the tensors of a state dict in place reaches the layer."""
    layer = change(pc.SubMConv3d(4, 6, 1))
    state = layer.state_dict()
    assert state["weight"].is_contiguous()
    state["weight"].fill_(3)
    assert bool((layer.weight == 3).all())
    again = pc.SubMConv3d(4, 6, 1)
    again.load_state_dict(pc.SubMConv3d(4, 6, 1).state_dict(), assign=True)
    again.state_dict()["weight"].fill_(3)
    assert bool((again.weight == 3).all())


def test_layers_that_read_their_weight_themselves() -> None:
    """The 1x1x1 layer of instance-segmentation code: its own forward depends on how spconv stores the weight."""

    def build(lib):
        class OneByOne(lib.SubMConv3d):
            def forward(self, x):
                features = torch.mm(x.features, self.weight.view(self.in_channels, self.out_channels))
                y = lib.SparseConvTensor(features, x.indices, x.spatial_shape, x.batch_size)
                y.indice_dict = x.indice_dict
                return y

        return lib.SparseSequential(OneByOne(4, 6, 1, bias=False), nn.ReLU())

    ours, theirs = build(pc), build(sp)
    x = random_cloud(SHAPES[3], 4, dtype=torch.float32)
    expected = in_training_mode(theirs, theirs_of(x)).features
    for state in (theirs.state_dict(), dict(theirs.state_dict())):
        ours.load_state_dict(state)
        assert torch.equal(ours(x).features, expected)
    assert torch.equal(pc.accelerate(ours.eval())(x).features, expected)


@pytest.mark.parametrize("channels", [(4, 6, 5), (4, 4, 4)], ids=str)
def test_code_that_replaces_the_loader_of_all_layers(monkeypatch, channels: tuple[int, int, int]) -> None:
    first, second, third = channels
    build = lambda lib: lib.SparseSequential(  # noqa: E731
        lib.SubMConv3d(first, second, 3), lib.SubMConv3d(second, third, 1, bias=False)
    )
    ours, theirs = build(pc), build(sp)
    monkeypatch.setattr(pc.SparseModule, "_version", 2)
    monkeypatch.setattr(pc.SparseModule, "_load_from_state_dict", moving_loader)
    x = random_cloud(SHAPES[3], first, dtype=torch.float32)
    state = theirs.state_dict()
    assert state._metadata["0"]["version"] == 1
    for metadata in state._metadata.values():
        metadata["version"] = 2
    ours.load_state_dict(state)
    expected = in_training_mode(theirs, theirs_of(x))
    assert_same(ours(x), expected)
    old = {
        "0.weight": state["0.weight"].movedim(0, -1).contiguous(), "0.bias": state["0.bias"],
        "1.weight": state["1.weight"].reshape(1, 1, 1, second, third),
    }  # fmt: skip
    for parameter in ours.parameters():
        nn.init.zeros_(parameter)
    ours.load_state_dict(old)
    assert_same(ours(x), expected)
    broken = {**old, "0.weight": state["0.weight"]}
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight"):
        ours.load_state_dict(broken)


@pytest.mark.parametrize("layout", ["RSCK", "RSKC"])
def test_weights_of_size_one_of_older_versions(layout: str) -> None:
    """They all read the memory as [Cin, Cout]; what an error advises computes that."""
    memory = torch.randn(4, 6)
    stored = memory.reshape((1, 1, 1, 4, 6) if layout == "RSCK" else (1, 1, 1, 6, 4))
    x = random_cloud(SHAPES[3], 4, dtype=torch.float32)
    source = "spconv-1" if layout == "RSCK" else "spconv-2.0"
    ours, theirs = pc.SubMConv3d(4, 6, 1, bias=False), sp.SubMConv3d(4, 6, 1, bias=False)
    for state in (
        {"weight": pc.convert_weight(stored, layout)},
        pc.convert_state_dict({"weight": stored}, ours),
        pc.convert_state_dict({"weight": stored}, ours, source=source),
    ):
        ours.load_state_dict(state)
        theirs.load_state_dict(state)
        torch.testing.assert_close(ours(x).features, x.features @ memory)
        torch.testing.assert_close(in_training_mode(theirs, theirs_of(x)).features, x.features @ memory)


@pytest.mark.parametrize("source", ["spconv-1", "spconv-2.0", "spconv-2.1", "torchsparse", "minkowski", "fvdb"])
def test_converted_checkpoints_compute_the_same_in_spconv(source: str) -> None:
    def build(lib):
        return lib.SparseSequential(
            lib.SubMConv3d(4, 6, 5), lib.SparseConv3d(6, 8, 2, 2, indice_key="k", bias=False), nn.BatchNorm1d(8),
            lib.SparseInverseConv3d(8, 5, 2, "k"), lib.SubMConv3d(5, 7, 1),
        )  # fmt: skip

    ours, theirs = build(pc), build(sp)
    state = pc.convert_state_dict(written_by(source, build(pc)), ours)
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = random_cloud((8, 8, 8), 4, dtype=torch.float32)
    assert_same(ours.train()(x), in_training_mode(theirs, theirs_of(x)))


def test_initial_weights_have_the_same_range() -> None:
    for lib in (pc, sp):
        layer = lib.SubMConv3d(16, 32, 3)
        bound = (16 * 27) ** -0.5
        for p in (layer.weight, layer.bias):
            assert 0.8 * bound < p.abs().max() <= bound
