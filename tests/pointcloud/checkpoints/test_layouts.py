"""Weights as each library stores them compute what it computes from them: its own decoding of indices is the oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pointcloud as pc
from pointcloud.checkpoints.convert import convert_state_dict, kernel_of
from pointcloud.checkpoints.layouts import LAYOUTS, Kernel, decode, encode, layout_named
from tests.pointcloud.checkpoints import library_oracles as oracle
from tests.pointcloud.dense_oracle import random_cloud

CIN, COUT = 3, 4
LIBRARIES: dict[str, tuple[str, Any, Any, Any]] = {
    # source, the shape of the weight from its taps, offsets, tap
    "spconv": ("spconv", None, oracle.row_major_offsets, oracle.krsc_tap),
    "spconv 2.1, large": ("spconv-2.1", None, oracle.row_major_offsets, oracle.rskc_tap),
    "spconv 2.0": ("spconv-2.0", None, oracle.row_major_offsets, oracle.rskc_tap),
    "spconv 1": ("spconv-1", None, oracle.row_major_offsets, oracle.rsck_tap),
    "mmcv": ("mmcv", None, oracle.row_major_offsets, oracle.rsck_tap),
    "torchsparse": ("torchsparse", None, oracle.torchsparse_offsets, oracle.by_tap),
    "minkowski": ("minkowski", None, oracle.minkowski_offsets, oracle.by_tap),
    "warpconvnet": ("warpconvnet", None, oracle.row_major_offsets, oracle.by_tap),
    "ocnn": ("ocnn", None, oracle.row_major_offsets, oracle.by_tap),
    "fvdb": ("fvdb", None, oracle.row_major_offsets, oracle.fvdb_tap),
}
LAYOUT_NAMES = {
    "spconv": "krsc", "spconv 2.1, large": "rskc", "spconv 2.0": "rskc", "spconv 1": "rsck", "mmcv": "rsck",
}  # fmt: skip
SIZES = [(1, 1, 1), (3, 3, 3), (2, 2, 2), (5, 1, 3), (3, 1, 1), (3, 3, 2), (4, 2, 3), (1, 2, 1)]


def layer_of(size: tuple[int, ...], stride: int) -> pc.SparseConvolution:
    """Odd axes are centred, even ones begin at the output's place."""
    if stride == 1 and all(k % 2 for k in size):
        return pc.SubMConv3d(CIN, COUT, size, bias=False, dtype=torch.float64)
    padding = [k // 2 if k % 2 else 0 for k in size]
    return pc.SparseConv3d(CIN, COUT, size, stride, padding, bias=False, dtype=torch.float64)


def shape_in(layout: str, layer: pc.SparseConvolution) -> tuple[int, ...]:
    return layout_named(layout).shapes(kernel_of(layer))[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_weight_computes_what_its_library_computes(library: str, size: tuple[int, ...], stride: int) -> None:
    source, _, offsets_of, tap_of = LIBRARIES[library]
    layer = layer_of(size, stride)
    if stride == 2 and layer.weight[0, ..., 0].numel() == 1 and source.startswith(("spconv", "mmcv")):
        pytest.skip("versions of spconv differ on what a kernel of size 1 with a stride is")
    weight = torch.randn(shape_in(LAYOUT_NAMES.get(library, library), layer), dtype=torch.float64)
    layer.load_state_dict(convert_state_dict({"kernel": weight}, layer, source=source))
    x = random_cloud((5, 6, 4), CIN, share=0.3)
    y = layer(x)
    offsets = offsets_of(size)
    taps = (tap_of(weight, tap) for tap in range(len(offsets)))
    expected = oracle.convolve(x.indices, x.features, y.indices, stride, offsets, taps)
    torch.testing.assert_close(y.features, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(3, 3, 3), (5, 3, 1), (3, 5, 7)], ids=str)
def test_minkowskis_cross(size: tuple[int, ...]) -> None:
    layer = layer_of(size, 1)
    weight = torch.randn(shape_in("minkowski-cross", layer), dtype=torch.float64)
    layer.load_state_dict(convert_state_dict({"kernel": weight}, layer))
    x = random_cloud((5, 6, 8), CIN, share=0.3)
    expected = oracle.convolve(x.indices, x.features, x.indices, 1, oracle.cross_offsets(size), iter(weight))
    torch.testing.assert_close(layer(x).features, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("library", ["torchsparse", "minkowski", "warpconvnet", "ocnn", "fvdb", "spconv 1", "spconv"])
@pytest.mark.parametrize("size", [(2, 2, 2), (3, 3, 3), (3, 2, 1)], ids=str)
def test_layers_that_go_up_use_the_same_taps(library: str, size: tuple[int, ...]) -> None:
    source, _, offsets_of, tap_of = LIBRARIES[library]
    padding = [k // 2 if k % 2 else 0 for k in size]
    down = pc.SparseConv3d(2, 2, size, 2, padding, indice_key="k", dtype=torch.float64)
    up = pc.SparseInverseConv3d(CIN, COUT, size, "k", bias=False, dtype=torch.float64)
    x = random_cloud((6, 6, 6), 2, share=0.3)
    coarse = down(x)
    coarse = coarse.replace_feature(torch.randn(len(coarse.features), CIN, dtype=torch.float64))
    weight = torch.randn(shape_in(LAYOUT_NAMES.get(library, library), up), dtype=torch.float64)
    up.load_state_dict(convert_state_dict({"weight": weight}, up, source=source))
    if library == "ocnn":
        assert weight.shape[1:] == (COUT, CIN)  # its deconvolution stores the weight of the convolution that it undoes
        tap_of = lambda weight, tap: weight[tap].T  # noqa: E731
    offsets = offsets_of(size)
    taps = (tap_of(weight, tap) for tap in range(len(offsets)))
    expected = oracle.convolve_transposed(coarse.indices, coarse.features, x.indices, 2, offsets, taps)
    torch.testing.assert_close(up(coarse).features, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("library", "groups", "tap_of"),
    [("warpconvnet", 2, oracle.grouped_by_tap), ("warpconvnet", 4, oracle.diagonal_by_tap),
     ("minkowski", 4, oracle.diagonal_by_tap)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_groups(library: str, groups: int, tap_of: Any) -> None:
    layer = pc.SubMConv3d(4, 4, (3, 1, 5), groups=groups, bias=False, dtype=torch.float64)
    weight = torch.randn(shape_in(library, layer), dtype=torch.float64)
    layer.load_state_dict(convert_state_dict({"weight": weight}, layer, source=library))
    x = random_cloud((5, 6, 8), 4, share=0.3)
    offsets = LIBRARIES[library][2]((3, 1, 5))
    taps = (tap_of(weight, tap) for tap in range(15))
    expected = oracle.convolve(x.indices, x.features, x.indices, 1, offsets, taps)
    torch.testing.assert_close(layer(x).features, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    size=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    groups=st.sampled_from([1, 1, 2]),
    strided=st.booleans(),
    transposed=st.booleans(),
)
def test_round_trip(layout, size, channels, groups, strided, transposed) -> None:
    cin, cout = (groups * n for n in channels)
    product = math.prod(size) == groups == 1 and not strided
    kernel = Kernel(cout, size, cin, groups, product=product, transposed=transposed)
    shapes = LAYOUTS[layout].shapes(kernel)
    for shape in shapes:
        stored = torch.arange(math.prod(shape)).reshape(shape)
        ordered = decode(stored, layout, kernel)
        assert ordered.shape == kernel.shape and ordered.is_contiguous()
        assert ordered.unique().tolist() == sorted({*stored.flatten().tolist(), *([0] if "cross" in layout else [])})
        again = encode(ordered, layout, kernel)
        assert again.shape == shapes[0] and torch.equal(again.flatten(), stored.flatten())
    if not shapes:
        with pytest.raises(ValueError, match=f"layout {layout} has no weight"):
            encode(torch.zeros(kernel.shape), layout, kernel)


def test_errors() -> None:
    kernel = Kernel(4, (3, 3, 3), 3)
    with pytest.raises(ValueError, match="layout must be one of krsc, .*, got 'x'"):
        decode(torch.zeros(1), "x", kernel)
    with pytest.raises(ValueError, match=r"weight must be \[27, 3, 4\] in the layout ocnn, got .*\[27, 4, 3\]"):
        decode(torch.zeros(27, 4, 3), "ocnn", kernel)
    with pytest.raises(ValueError, match=r"weight must be \[4, 3, 3, 3, 3\], got"):
        encode(torch.zeros(3, 3, 3, 3, 4), "krsc", kernel)
    with pytest.raises(ValueError, match="zero outside of the cross"):
        encode(torch.ones(kernel.shape), "minkowski-cross", kernel)
