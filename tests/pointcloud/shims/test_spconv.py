"""The stand-in for spconv: the original's names, and the numbers of its CPU build where it is installed."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pointcloud as pc
from pointcloud.shims import spconv
from pointcloud.shims.spconv import pytorch as sp
from tests.pointcloud.dense_oracle import random_cloud

HOME = "pointcloud.shims."
# The names of spconv 2.3.8's CPU build by module, from `names_of`. Its quantization modules do not import there.
NAMES: dict[str, list[str]] = json.loads((Path(__file__).parent / "spconv_names.json").read_text())
MODULES = [name for name in NAMES if name != "spconv.pytorch.quantization"]


def names_of(module_name: str) -> set[str]:
    """Public names of a module of the installed spconv that spconv itself defines, its constants too."""
    module = importlib.import_module(module_name)
    own = set()
    for name, value in vars(module).items():
        home = getattr(value, "__module__", None)
        foreign = isinstance(home, str) and not home.startswith("spconv")
        module_of_another = inspect.ismodule(value) and not value.__name__.startswith("spconv")
        if not name.startswith("_") and not foreign and not module_of_another:
            own.add(name)
    return own


@pytest.mark.parametrize("module_name", NAMES)
def test_every_name_exists(module_name: str) -> None:
    module = importlib.import_module(HOME + module_name)
    assert [name for name in NAMES[module_name] if not hasattr(module, name)] == []
    assert [name for name in getattr(module, "__all__", []) if not hasattr(module, name)] == []


@pytest.mark.parametrize("module_name", MODULES)
def test_the_list_is_that_of_the_installed_spconv(module_name: str) -> None:
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    missing = names_of(module_name) - set(NAMES[module_name]) - NOT_THE_API.get(module_name, set())
    assert missing == set()


# Build helpers, modules of compiled code, and names that other modules of spconv import by accident.
NOT_THE_API = {
    "spconv": {"algocore", "benchmark", "build", "core_cc", "test_utils", "pytorch"},
    "spconv.pytorch.conv": {"Fsp", "ops", "spconv"},
    "spconv.pytorch.functional": {"ops"},
    "spconv.pytorch.modules": {"spconv"},
    "spconv.pytorch.ops": {"constants", "spconv"},
    "spconv.pytorch.pool": {"Fsp", "ops", "spconv"},
    "spconv.pytorch.spatial": {"spconv"},
    "spconv.pytorch.tables": {"F"},
}


@pytest.mark.parametrize(
    ("module_name", "name"),
    [(m, n) for m, names in NAMES.items() for n in names if m.startswith("spconv.pytorch.") or m == "spconv.utils"],
)
def test_arguments_are_those_of_spconv_or_the_use_is_refused(module_name: str, name: str) -> None:
    ours = getattr(importlib.import_module(HOME + module_name), name)
    if getattr(type(ours), "__name__", "") == "_Refusing":
        with pytest.raises(NotImplementedError, match=rf"spconv\.[\w.]*{name} is not available: "):
            ours(1)
        with pytest.raises(NotImplementedError, match=rf"{name} is not available"):
            _ = ours.apply
        return
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    if module_name == "spconv.pytorch.quantization" or name.startswith("Point2Voxel"):
        return  # the wheel cannot import the first and has no signatures for the second
    theirs = getattr(importlib.import_module(module_name), name)
    if (inspect.isclass(theirs) and issubclass(theirs, nn.Module)) or inspect.isfunction(theirs):
        accepted = inspect.signature(ours).parameters
        wanted = inspect.signature(theirs).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            assert set(wanted) - set(accepted) - UNKNOWN == set()
            for key, parameter in wanted.items():
                if key in accepted and isinstance(parameter.default, (int, str, bool, type(None))):
                    assert accepted[key].default == parameter.default, key


# Of the base class only: `activation` is set by folding. The error of Python for an unknown argument names it.
# `tens` collects the positional arguments of sparse_add.
UNKNOWN = {"act_type", "act_alpha", "act_beta", "tens"}


def test_versions() -> None:
    assert spconv.SPCONV_VERSION_NUMBERS == [int(part) for part in spconv.__version__.split(".")] == [2, 3, 8]
    spconv.constants.SPCONV_USE_DIRECT_TABLE = False  # detectors assign it
    assert sp.conv.SparseConvolution is pc.SparseConvolution and sp.ConvAlgo is pc.ConvAlgo


def test_modules_of_layers() -> None:
    net = sp.SparseSequential(sp.SubMConv3d(2, 2, 3), nn.ReLU(), sp.SparseSequential(sp.ToDense()))
    sp.assign_name_for_sparse_modules(net)
    assert [net._sparse_unique_name, net[0]._sparse_unique_name, net[2][0]._sparse_unique_name] == ["", "0", "2.0"]
    assert sp.modules.is_sparse_conv(net[0]) and not sp.modules.is_sparse_conv(net[1])


@pytest.fixture
def x() -> pc.SparseConvTensor:
    return random_cloud((6, 7, 5), 3, dtype=torch.float32)


def test_tables_and_duplicates(x: pc.SparseConvTensor, capsys: pytest.CaptureFixture[str]) -> None:
    half = x.select_by_index(torch.arange(0, len(x.features), 2))
    total = sp.tables.AddTableMisaligned()([half, x])
    assert torch.equal(total.dense(), half.dense() + x.dense())
    twice = pc.SparseConvTensor(x.features.repeat(2, 1), x.indices.repeat(2, 1), x.spatial_shape, x.batch_size)
    assert torch.equal(sp.spatial.RemoveDuplicate()(twice).dense(), x.dense())
    assert sp.modules.PrintTensorMeta()(x) is x and sp.modules.PrintCurrentTime()(x, "seconds", True) is x
    assert "seconds" in capsys.readouterr().out
    assert torch.equal(sp.pool.SparseGlobalMaxOrAvgPool(True)(x), pc.SparseGlobalAvgPool()(x))


def test_scatter_nd(x: pc.SparseConvTensor) -> None:
    grid = sp.core.scatter_nd(x.indices, x.features, [x.batch_size, *x.spatial_shape, 3])
    assert torch.equal(grid, x.dense(channels_first=False))
    assert sp.core.expand_nd(3, 2) == [2, 2, 2] and sp.core.expand_nd(2, np.array([1, 3])) == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "subm", "transpose"),
    [(([3, 3, 3], [1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0]), True, False),
     (([3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1], [0, 0, 0]), False, False),
     (([3, 2, 3], [2, 2, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]), False, True)],
)  # fmt: skip
def test_products_over_pairs(x: pc.SparseConvTensor, arguments, subm: bool, transpose: bool) -> None:
    out, pairs, count = sp.ops.get_indice_pairs(
        x.indices, x.batch_size, x.spatial_shape, sp.ConvAlgo.Native, *arguments, subm, transpose
    )
    kernel, stride, padding, dilation, _ = arguments
    family = pc.SubMConv3d if subm else pc.SparseConvTranspose3d if transpose else pc.SparseConv3d
    layer = family(3, 4, kernel, stride, padding, dilation)
    expected = layer(x)
    size = sp.ops.get_deconv_output_size if transpose else sp.ops.get_conv_output_size
    shape = size(x.spatial_shape, *arguments[: 5 if transpose else 4])
    assert torch.equal(out, expected.indices) and shape == expected.spatial_shape
    features = x.features.clone().requires_grad_()
    y = sp.functional.indice_conv(features, layer.weight, pairs, count, len(out), bias=layer.bias)
    torch.testing.assert_close(y, expected.features)
    y.sum().backward()
    assert features.grad is not None and bool(features.grad.any())
    back = sp.functional.indice_inverse_conv(
        y.detach(), layer.weight.new_ones(2, *kernel, 4), pairs, count, len(x.indices)
    )
    wanted = torch.zeros(len(x.indices), 2)
    for source, target in pairs.transpose(0, 1).tolist():
        for i, o in zip(source, target):
            if i >= 0:
                wanted[i] += float(y[o].sum())
    torch.testing.assert_close(back, wanted, rtol=1e-4, atol=1e-4)


def test_what_pairs_refuse(x: pc.SparseConvTensor) -> None:
    ones, zeros = [1, 1, 1], [0, 0, 0]
    call = lambda algo, **kw: sp.ops.get_indice_pairs(  # noqa: E731
        x.indices, x.batch_size, x.spatial_shape, algo, ones, ones, zeros, ones, zeros, **kw
    )
    with pytest.raises(ValueError, match=r"algo must be ConvAlgo.Native, got <ConvAlgo.MaskImplicitGemm"):
        call(sp.ConvAlgo.MaskImplicitGemm)
    with pytest.raises(ValueError, match="num_out_act_bound is not supported"):
        call(sp.ConvAlgo.Native, num_out_act_bound=5)
    _, pairs, count = call(sp.ConvAlgo.Native)
    weight = torch.ones(2, 1, 1, 1, 3)
    with pytest.raises(ValueError, match=r"act_type, act_alpha and act_beta must stay at their defaults"):
        sp.ops.indice_conv(x.features, weight, pairs, count, len(x.indices), act_alpha=0.1)
    with pytest.raises(ValueError, match=r"indice_pairs must lie below the 5 rows of features"):
        sp.ops.indice_conv(x.features[:5], weight, pairs, count, len(x.indices))
    with pytest.raises(ValueError, match="kernel_size must be at least 1"):
        sp.ops.get_deconv_output_size([4], [-1], [1], [0], [1], [0])


def test_voxel_generators() -> None:
    points = np.random.default_rng(0).uniform(-0.2, 1.2, (300, 4)).astype(np.float32)
    arguments = [0.25, 0.25, 0.5], [0, 0, 0, 1, 1, 1], 4, 40, 3
    ours = spconv.utils.Point2VoxelCPU3d(*arguments)
    expected = pc.PointToVoxel(*arguments)(torch.from_numpy(points))
    for result in (ours.point_to_voxel(points), ours.point_to_voxel_hash(torch.from_numpy(points))):
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    assert ours.grid_size == [2, 4, 4] and isinstance(ours.point_to_voxel(points)[0].numpy(), np.ndarray)
    mean = pc.PointToVoxel(*arguments)(torch.from_numpy(points), empty_mean=True)
    assert torch.equal(ours.point_to_voxel_empty_mean(points)[0], mean[0])
    with pytest.raises(ValueError, match="vsize_xyz must have 2 numbers for Point2VoxelCPU2d"):
        spconv.utils.Point2VoxelCPU2d(*arguments)


def test_features_of_voxels_go_back_to_points() -> None:
    values, index = torch.arange(6.0).view(3, 2), torch.tensor([2, -1, 0, 2])
    for invalid in (0, -7):
        expected = torch.stack([values[2], torch.full((2,), float(invalid)), values[0], values[2]])
        assert torch.equal(sp.utils.gather_features_by_pc_voxel_id(values, index, invalid), expected)
    none = sp.utils.gather_features_by_pc_voxel_id(values[:0], torch.tensor([-1]))
    assert torch.equal(none, torch.zeros(1, 2))


class DetectorTail(nn.Module):
    """The end of a fully sparse detector: three scales in one tensor, its height summed, written for spconv.

    It scales indices in place, gives a tensor other rows before other indices, and then flattens the grid.
    """

    def __init__(self, lib) -> None:
        super().__init__()
        self.first = lib.SubMConv3d(3, 8, 3, bias=False, indice_key="s1")
        self.down = nn.ModuleList(
            lib.SparseSequential(
                lib.SparseConv3d(8, 8, 3, 2, 1, bias=False, indice_key=f"d{i}"), nn.BatchNorm1d(8), nn.ReLU()
            )
            for i in range(2)
        )
        self.flat = lib.SubMConv2d(8, 4, 3, bias=False, indice_key="flat")
        self.lib = lib

    def forward(self, x):
        x = self.first(x)
        scales = [x]
        for down in self.down:
            scales.append(down(scales[-1]))
        for factor, each in zip((2, 4), scales[1:]):
            each.indices[:, 1:] *= factor
        x = x.replace_feature(torch.cat([each.features for each in scales]))
        x.indices = torch.cat([each.indices for each in scales])
        cells, inverse = torch.unique(x.indices[:, [0, 2, 3]], dim=0, return_inverse=True)
        features = x.features.new_zeros(len(cells), x.features.shape[1]).index_add(0, inverse, x.features)
        return self.flat(self.lib.SparseConvTensor(features, cells, [s + 4 for s in x.spatial_shape[1:]], x.batch_size))


class EncoderOnly(nn.Module):
    """A U-Net's encoder whose features become means of the samples: rows without coordinates."""

    def __init__(self, lib) -> None:
        super().__init__()
        self.stem = lib.SubMConv3d(3, 8, 5, padding=1, bias=False, indice_key="stem")
        self.down = lib.SparseSequential(
            lib.SparseConv3d(8, 12, 2, 2, bias=False, indice_key="spconv1"), nn.BatchNorm1d(12)
        )
        self.final = lib.Identity()

    def forward(self, x):
        x = self.down(self.stem(x))
        batch = x.indices[:, 0].long()
        total = x.features.new_zeros(x.batch_size, 12).index_add(0, batch, x.features)
        return self.final(x.replace_feature(total / torch.bincount(batch)[:, None]))


@pytest.mark.parametrize("network", [DetectorTail, EncoderOnly])
@pytest.mark.usefixtures("one_thread")
def test_code_that_sets_rows_and_indices(x: pc.SparseConvTensor, network: type[nn.Module]) -> None:
    theirs_lib = pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    ours, theirs = network(sp), network(theirs_lib)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        expected = theirs(theirs_lib.SparseConvTensor(x.features, x.indices.clone(), x.spatial_shape, x.batch_size))
        got = ours(pc.SparseConvTensor(x.features, x.indices.clone(), x.spatial_shape, x.batch_size))
    if network is DetectorTail:
        assert torch.equal(got.indices, expected.indices)
    torch.testing.assert_close(got.features, expected.features, rtol=1e-4, atol=1e-5)
    ours(pc.SparseConvTensor(x.features, x.indices.clone(), x.spatial_shape, x.batch_size)).features.sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
