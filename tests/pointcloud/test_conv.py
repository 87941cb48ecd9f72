"""Sparse convolutions against dense ones in float64, restricted to active sites."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import pointcloud as pc
from pointcloud.conv import SparseConvolution
from tests.pointcloud.dense_oracle import (
    at,
    conv,
    conv_transpose,
    per_axis,
    random_cloud,
    reached,
    scatter,
    submanifold_conv,
    torch_weight,
)

SHAPES = {1: (23,), 2: (9, 8), 3: (6, 7, 5), 4: (5, 4, 4, 3)}


def layer_class(family: str, ndim: int) -> type[SparseConvolution]:
    return getattr(pc, f"{family}{ndim}d")


def double(layer: nn.Module, device: str) -> nn.Module:
    return layer.to(device, torch.float64)


def assert_gradients_equal(ours: torch.Tensor, dense: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Both outputs [M, C] give the same gradients of `inputs`."""
    weights = torch.randn_like(ours)
    got = torch.autograd.grad((ours * weights).sum(), inputs)
    expected = torch.autograd.grad((dense * weights).sum(), inputs)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


SUBMANIFOLD = [
    *((ndim, k, 1) for ndim in (1, 2, 3) for k in (1, 2, 3, 4, 5)),
    (4, 2, 1), (4, 3, 1), (1, 3, 3), (2, (3, 1), (2, 1)), (2, 4, 2), (3, (3, 1, 5), 1), (3, (2, 3, 1), (1, 2, 3)),
    (3, 3, 2), (4, (1, 3, 2, 3), (1, 2, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("ndim", "kernel", "dilation"), SUBMANIFOLD, ids=str)
def test_submanifold_equals_dense(ndim: int, kernel: object, dilation: object, device: str) -> None:
    layer = double(layer_class("SubMConv", ndim)(3, 4, kernel, dilation=dilation), device)
    x = random_cloud(SHAPES[ndim], 3, device=device)
    x = x.replace_feature(x.features.requires_grad_())
    y = layer(x)
    assert y.coordinates is x.coordinates
    weight = torch_weight(layer.output_first_weight)
    expected = at(submanifold_conv(scatter(x), weight, per_axis(dilation, ndim)), x.indices) + layer.bias
    torch.testing.assert_close(y.features, expected, rtol=1e-12, atol=1e-12)
    assert_gradients_equal(y.features, expected, [x.features, layer.weight, layer.bias])


STRIDED = [
    *((ndim, k, s, p, 1) for ndim in (1, 2, 3) for k, s, p in (
        (1, 1, 0), (2, 2, 0), (3, 2, 1), (3, 1, 1), (4, 2, 1), (5, 3, 2), (1, 2, 0), (1, 1, 1), (2, 3, 1))),
    (4, 2, 2, 0, 1), (4, 3, 2, 1, 1), (4, (1, 3, 2, 1), (1, 2, 1, 3), (0, 1, 1, 0), (1, 1, 2, 1)),
    (1, 3, 2, 2, 2), (2, 3, 2, 1, (1, 2)), (3, (3, 1, 1), (2, 1, 1), 0, 1), (3, 3, 2, (0, 1, 1), 1),
    (3, (2, 3, 1), (1, 2, 3), (1, 0, 2), (2, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("ndim", "kernel", "stride", "padding", "dilation"), STRIDED, ids=str)
def test_strided_equals_dense(ndim, kernel, stride, padding, dilation, device) -> None:
    layer = double(layer_class("SparseConv", ndim)(3, 4, kernel, stride, padding, dilation), device)
    x = random_cloud(SHAPES[ndim], 3, share=0.15, device=device)
    x = x.replace_feature(x.features.requires_grad_())
    y = layer(x)
    args = [per_axis(value, ndim) for value in (stride, padding, dilation)]
    dense = conv(scatter(x), torch_weight(layer.output_first_weight), *args)
    assert y.spatial_shape == list(dense.shape[2:])
    cells = reached(x, per_axis(kernel, ndim), *args)
    if layer.conv1x1:
        assert y.coordinates is x.coordinates
    else:
        assert torch.equal(y.indices.long(), cells)  # exactly the cells reached, sorted
    expected = at(dense, y.indices) + layer.bias
    torch.testing.assert_close(y.features, expected, rtol=1e-12, atol=1e-12)
    assert_gradients_equal(y.features, expected, [x.features, layer.weight, layer.bias])


TRANSPOSED = [
    *((ndim, k, s, p, 1, 0) for ndim in (1, 2, 3) for k, s, p in (
        (2, 2, 0), (3, 2, 1), (3, 1, 1), (4, 2, 1), (5, 3, 2))),
    (4, 2, 2, 0, 1, 0), (4, (1, 2, 3, 1), (1, 2, 2, 1), (0, 0, 1, 0), 1, (0, 1, 1, 0)),
    (1, 3, 2, 1, 2, 1), (2, 3, (2, 3), (1, 0), 1, (1, 2)), (3, 3, 2, 1, 1, 1),
    (3, (1, 2, 3), (1, 2, 2), 0, (1, 1, 2), 0),
]  # fmt: skip


@pytest.mark.parametrize(("ndim", "kernel", "stride", "padding", "dilation", "extra"), TRANSPOSED, ids=str)
def test_transposed_equals_dense(ndim, kernel, stride, padding, dilation, extra, device) -> None:
    make = layer_class("SparseConvTranspose", ndim)
    layer = double(make(3, 4, kernel, stride, padding, dilation, output_padding=extra), device)
    x = random_cloud(SHAPES[ndim], 3, share=0.1, device=device)
    x = x.replace_feature(x.features.requires_grad_())
    y = layer(x)
    args = [per_axis(value, ndim) for value in (stride, padding, dilation, extra)]
    dense = conv_transpose(scatter(x), torch_weight(layer.output_first_weight).transpose(0, 1), *args)
    assert y.spatial_shape == list(dense.shape[2:])
    assert torch.equal(y.indices.long(), reached(x, per_axis(kernel, ndim), *args))
    expected = at(dense, y.indices) + layer.bias
    torch.testing.assert_close(y.features, expected, rtol=1e-12, atol=1e-12)
    assert_gradients_equal(y.features, expected, [x.features, layer.weight, layer.bias])


@pytest.mark.parametrize(
    ("ndim", "kernel", "stride", "padding"),
    [(1, 3, 2, 1), (2, 2, 2, 0), (3, 2, 2, 0), (3, 3, 2, 1), (3, 4, 2, 1), (4, 2, 2, 0), (3, 1, 2, 0)],
    ids=str,
)
def test_inverse_equals_dense_transpose_at_the_earlier_coordinates(ndim, kernel, stride, padding, device) -> None:
    x = random_cloud(SHAPES[ndim], 3, device=device)
    down = double(layer_class("SparseConv", ndim)(3, 5, kernel, stride, padding, indice_key="down"), device)
    up = double(layer_class("SparseInverseConv", ndim)(5, 4, kernel, "down"), device)
    coarse = down(x)
    coarse = coarse.replace_feature(coarse.features.detach().requires_grad_())
    y = up(coarse)
    assert y.coordinates is x.coordinates
    # A dense transposed convolution without padding, cut to the earlier grid.
    weight = torch_weight(up.output_first_weight).transpose(0, 1)
    grid = conv_transpose(scatter(coarse), weight, down.stride, [0] * ndim, down.dilation, [0] * ndim)
    for axis, (pad, extent) in enumerate(zip(down.padding, x.spatial_shape), start=2):
        wide = torch.cat([grid, grid.new_zeros(*grid.shape[:axis], pad + extent, *grid.shape[axis + 1 :])], axis)
        grid = wide.narrow(axis, pad, extent)
    expected = at(grid, x.indices) + up.bias
    torch.testing.assert_close(y.features, expected, rtol=1e-12, atol=1e-12)
    assert_gradients_equal(y.features, expected, [coarse.features, up.weight, up.bias])


@pytest.mark.parametrize("family", ["SubMConv", "SparseConv", "SparseConvTranspose"])
@pytest.mark.parametrize(
    ("kernel", "groups", "channels"), [(3, 2, (4, 6)), (3, 4, (4, 4)), (2, 4, (4, 8)), (1, 2, (4, 6))]
)
def test_groups_equal_dense(family, kernel, groups, channels, device) -> None:
    layer = double(layer_class(family, 2)(*channels, kernel, groups=groups), device)
    assert layer.weight.shape == (channels[1], kernel, kernel, channels[0] // groups)
    x = random_cloud(SHAPES[2], channels[0], device=device)
    x = x.replace_feature(x.features.requires_grad_())
    y = layer(x)
    weight = torch_weight(layer.output_first_weight)
    if family == "SubMConv":
        side = [kernel // 2, kernel - 1 - kernel // 2] * 2
        dense = nn.functional.conv2d(nn.functional.pad(scatter(x), side), weight, groups=groups)
    elif family == "SparseConv":
        dense = nn.functional.conv2d(scatter(x), weight, groups=groups)
    else:  # torch lays the weight of a grouped transposed convolution out as [Cin, Cout / groups, *kernel]
        turned = torch.cat([part.transpose(0, 1) for part in weight.chunk(groups)])
        dense = nn.functional.conv_transpose2d(scatter(x), turned, groups=groups)
    expected = at(dense, y.indices) + layer.bias
    torch.testing.assert_close(y.features, expected, rtol=1e-12, atol=1e-12)
    assert_gradients_equal(y.features, expected, [x.features, layer.weight, layer.bias])


@pytest.mark.parametrize("family", ["SubMConv", "SparseConv", "SparseConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradcheck(family: str, groups: int, device: str) -> None:
    layer = double(layer_class(family, 2)(4, 4, 3, groups=groups), device)
    x = random_cloud((4, 4), 4, batch_size=1, device=device)

    def act(features, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x.replace_feature(features)).features

    inputs = [p.detach().clone().requires_grad_() for p in (x.features, layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(act, inputs)
    assert torch.autograd.gradgradcheck(act, inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", ["SubMConv", "SparseConv", "SparseConvTranspose"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_empty_and_one_voxel(family: str, kernel: int, training: bool, device: str) -> None:
    layer = layer_class(family, 3)(3, 4, kernel, padding=kernel // 2).to(device).train(training)
    shape = [5, 6, 7]
    empty = pc.SparseConvTensor(torch.zeros(0, 3), torch.zeros(0, 4, dtype=torch.int32), shape, 2).to(device)
    y = layer(empty)
    assert y.features.shape == (0, 4) and y.indices.shape == (0, 4) and y.spatial_shape == shape and y.batch_size == 2
    y.features.sum().backward()
    assert layer.weight.grad is not None and not layer.weight.grad.any()
    one = pc.SparseConvTensor(torch.ones(1, 3), torch.tensor([[1, 2, 3, 4]], dtype=torch.int32), shape, 2).to(device)
    y = layer(one)
    assert len(y.features) == (1 if family == "SubMConv" else kernel**3)
    centre = layer.output_first_weight[:, kernel // 2, kernel // 2, kernel // 2].sum(1) + layer.bias
    row = (y.indices == one.indices).all(1).nonzero().item()
    torch.testing.assert_close(y.features[row], centre)


def test_empty_inverse(device: str) -> None:
    empty = pc.SparseConvTensor(torch.zeros(0, 3), torch.zeros(0, 4, dtype=torch.int32), [4, 4, 4], 1).to(device)
    down, up = pc.SparseConv3d(3, 4, 2, 2, indice_key="k").to(device), pc.SparseInverseConv3d(4, 2, 2, "k").to(device)
    y = up(down(empty))
    assert y.features.shape == (0, 2) and y.coordinates is empty.coordinates


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_narrow_dtypes(dtype: torch.dtype, groups: int, device: str) -> None:
    layer = pc.SubMConv3d(8, 8, 3, groups=groups).to(device, dtype)
    x = random_cloud((6, 6, 6), 8, dtype=dtype, device=device)
    x = x.replace_feature(x.features.requires_grad_())
    y = layer(x)
    assert y.features.dtype == dtype
    wide = copy.deepcopy(layer).double()(x.replace_feature(x.features.double()))
    # Accumulated in fp32, so that only the rounding of the result and of the bias shows.
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.features.double(), wide.features, rtol=tolerance, atol=tolerance)
    y.features.sum().backward()
    assert layer.weight.grad.dtype == dtype and x.features.grad.dtype == dtype


def test_autocast(device: str) -> None:
    dtype = torch.bfloat16 if device == "cpu" else torch.float16
    x = random_cloud((6, 6, 6), 8, dtype=torch.float32, device=device)
    for layer in (pc.SubMConv3d(8, 8, 3), pc.SubMConv3d(8, 8, 1), pc.SparseConv3d(8, 8, 2, 2)):
        layer.to(device)
        with torch.autocast(device, dtype):
            y = layer(x)
        assert y.features.dtype == dtype
        torch.testing.assert_close(y.features.float(), layer(x).features, rtol=0.05, atol=0.05)
        y.features.float().sum().backward()
        assert layer.weight.grad.dtype == torch.float32
        with torch.autocast(device, dtype):
            assert layer.double()(x.to(torch.float64)).features.dtype == torch.float64


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_residual_and_activation(kernel: int, groups: int, device: str) -> None:
    layer = double(pc.SubMConv3d(4, 4, kernel, groups=groups), device)
    x = random_cloud((5, 5, 5), 4, device=device)
    plain = layer(x).features
    added = torch.randn_like(plain)
    torch.testing.assert_close(layer(x, residual=added).features, plain + added)
    torch.testing.assert_close(layer(x, x.replace_feature(added)).features, plain + added)
    layer.activation = "relu"
    torch.testing.assert_close(layer(x, residual=added).features, (plain + added).relu())
    assert "activation=relu" in repr(layer)


@pytest.mark.parametrize("make", [
    lambda: pc.SubMConv3d(8, 16, 3), lambda: pc.SubMConv3d(8, 8, 3, groups=8), lambda: pc.SparseConv3d(8, 16, 3, 2, 1),
    lambda: pc.SparseConvTranspose3d(8, 16, 2, 2), lambda: pc.SubMConv3d(8, 16, 3, groups=4),
])  # fmt: skip
def test_repeats_and_thread_counts_agree_bit_for_bit(make, device: str) -> None:
    layer = make().to(device)
    x = random_cloud((16, 16, 16), 8, dtype=torch.float32, device=device)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1, 2):
            torch.set_num_threads(threads)
            fresh = pc.SparseConvTensor(x.features.requires_grad_(), x.indices, x.spatial_shape, x.batch_size)
            y = layer(fresh)
            grads = torch.autograd.grad((y.features**2).sum(), [x.features, layer.weight])
            results.append([y.indices, y.features.detach(), *grads])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("family", ["SubMConv", "SparseConv", "SparseConvTranspose"])
def test_permuting_rows_permutes_the_output_and_nothing_else(family: str, device: str) -> None:
    layer = layer_class(family, 3)(4, 8, 3).to(device)
    x = random_cloud((10, 10, 10), 4, dtype=torch.float32, device=device)
    order = torch.randperm(len(x.features), device=device)
    y, moved = layer(x), layer(x.select_by_index(order))
    if family == "SubMConv":
        assert torch.equal(moved.indices, y.indices[order])
        assert torch.equal(moved.features, y.features[order])
    else:
        assert torch.equal(moved.indices, y.indices)
        assert torch.equal(moved.features, y.features)


def test_batches_do_not_mix(device: str) -> None:
    layer = double(pc.SubMConv3d(3, 4, 3), device)
    x = random_cloud((4, 4, 4), 3, batch_size=3, share=0.5, device=device)
    y = layer(x)
    for sample in range(3):
        rows = x.indices[:, 0] == sample
        alone = layer(x.select_by_index(rows))
        torch.testing.assert_close(alone.features, y.features[rows], rtol=1e-14, atol=1e-14)


def test_maps_are_found_once_and_shared(device: str) -> None:
    x = random_cloud((6, 6, 6), 4, dtype=torch.float32, device=device)
    layer = pc.SubMConv3d(4, 4, 3).to(device)
    layer(x)
    found = x.coordinates.link(layer.geometry)
    assert layer(layer(x)).coordinates.link(layer.geometry) is found
    other = pc.SubMConv3d(4, 4, 3, padding=1, indice_key="k").to(device)  # padding means nothing to a submanifold layer
    assert other(x).find_indice_pair("k").link is found
    down, up = pc.SparseConv3d(4, 4, 2, 2, indice_key="d").to(device), pc.SparseInverseConv3d(4, 4, 2, "d").to(device)
    coarse = down(x)
    assert up(coarse).coordinates.link(layer.geometry) is found
    known = coarse.find_indice_pair("d")
    assert known.link.inverse(known.source) is known.link.inverse(known.source)
    assert "k" not in x.indice_dict and "d" not in x.indice_dict


def test_a_map_found_in_inference_mode_serves_training(device: str) -> None:
    x = random_cloud((6, 6, 6), 4, dtype=torch.float32, device=device)
    net = pc.SparseSequential(
        pc.SubMConv3d(4, 4, 3), pc.SparseConv3d(4, 4, 2, 2, indice_key="d"), pc.SparseInverseConv3d(4, 4, 2, "d")
    ).to(device)
    with torch.inference_mode():
        first = net(x).features.clone()
    y = net(x)
    y.features.sum().backward()
    torch.testing.assert_close(y.features, first)


def test_key_reused_for_the_same_map(device: str) -> None:
    x = random_cloud((6, 6, 6), 4, dtype=torch.float32, device=device)
    first, second = (pc.SubMConv3d(4, 4, 3, indice_key="k").to(device) for _ in range(2))
    y = first(x)
    # The same cells in a tensor made anew, as hand-written network code does.
    again = pc.SparseConvTensor(y.features, y.indices.clone(), y.spatial_shape, y.batch_size, indice_dict=y.indice_dict)
    z = second(again)
    assert z.coordinates is again.coordinates
    assert again.coordinates.link(first.geometry) is x.coordinates.link(first.geometry)


def test_key_reused_for_another_map_raises(device: str) -> None:
    x = random_cloud((8, 8, 8), 4, dtype=torch.float32, device=device)
    y = pc.SubMConv3d(4, 4, 3, indice_key="k").to(device)(x)
    for layer in (
        pc.SubMConv3d(4, 4, (1, 3, 3), indice_key="k"),
        pc.SubMConv3d(4, 4, 3, dilation=2, indice_key="k"),
        pc.SparseConv3d(4, 4, 3, indice_key="k"),
        pc.SparseMaxPool3d(2, indice_key="k"),
    ):
        with pytest.raises(
            ValueError, match=r"indice_key 'k' stands for a submanifold map with kernel_size \[3, 3, 3\]"
        ):
            layer.to(device)(y)
    coarse = pc.SparseConv3d(4, 4, 2, 2).to(device)(y)
    with pytest.raises(ValueError, match=r"indice_key 'k' stands for .* but this layer needs a submanifold map"):
        pc.SubMConv3d(4, 4, 3, indice_key="k").to(device)(coarse)
    # Same number of rows, same grid, other cells.
    moved = pc.SparseConvTensor(y.features, y.indices.flip(0), y.spatial_shape, 2, indice_dict=y.indice_dict)
    with pytest.raises(ValueError, match="indice_key 'k' stands for"):
        pc.SubMConv3d(4, 4, 3, indice_key="k").to(device)(moved)


def test_inverse_errors(device: str) -> None:
    x = random_cloud((8, 8, 8), 4, dtype=torch.float32, device=device)
    y = pc.SubMConv3d(4, 4, 3, indice_key="sub").to(device)(x)
    z = pc.SparseConv3d(4, 4, 2, 2, indice_key="down").to(device)(y)
    with pytest.raises(ValueError, match=r"'up' is not known.* known keys: 'sub', 'down'"):
        pc.SparseInverseConv3d(4, 4, 2, "up").to(device)(z)
    with pytest.raises(ValueError, match="known keys: none"):
        pc.SparseInverseConv3d(4, 4, 2, "up").to(device)(x)
    with pytest.raises(ValueError, match=r"'sub' stands for .*; only a SparseConv or pooling layer can be inverted"):
        pc.SparseInverseConv3d(4, 4, 3, "sub").to(device)(z)
    with pytest.raises(ValueError, match=r"kernel_size must be that of the layer inverted.* kernel_size \[3, 3, 3\]"):
        pc.SparseInverseConv3d(4, 4, 3, "down").to(device)(z)
    deeper = pc.SparseConv3d(4, 4, 2, 2).to(device)(z)
    with pytest.raises(ValueError, match="the map of indice_key 'down' leads to"):
        pc.SparseInverseConv3d(4, 4, 2, "down").to(device)(deeper)
    with pytest.raises(ValueError, match="indice_key must name the layer"):
        pc.SparseInverseConv3d(4, 4, 2, None)


def test_bad_coordinates_raise(device: str) -> None:
    layer = pc.SubMConv3d(2, 2, 3).to(device)

    def tensor(rows):
        indices = torch.tensor(rows, dtype=torch.int32)
        return pc.SparseConvTensor(torch.ones(len(rows), 2), indices, [4, 4, 4], 2).to(device)

    for row in ([0, 4, 0, 0], [0, 0, -1, 0], [2, 0, 0, 0], [-1, 0, 0, 0]):
        with pytest.raises(ValueError, match=r"coords must lie in batch_size 2 and shape \[4, 4, 4\]: row 1"):
            layer(tensor([[0, 0, 0, 0], row]))
    with pytest.raises(ValueError, match="coords must be unique: row 2 repeats row 0"):
        layer(tensor([[1, 1, 2, 3], [0, 1, 2, 3], [1, 1, 2, 3]]))


def test_far_apart_voxels_of_a_large_grid_do_not_meet(device: str) -> None:
    indices = torch.tensor([[0, 0, 0, 0], [0, 1024, 0, 0]], dtype=torch.int32)
    x = pc.SparseConvTensor(torch.ones(2, 1), indices, [2048] * 3, 1).to(device)
    layer = pc.SubMConv3d(1, 1, 3, bias=False).to(device)
    expected = layer.weight[0, 1, 1, 1].expand(2, 1)
    torch.testing.assert_close(layer(x).features, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="keys reach 2"):
        pc.SparseConvTensor(torch.ones(2, 1), indices, [2**21] * 3, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.SubMConv3d(4, 4, 3, stride=2), r"stride of a submanifold convolution must be 1, got \[2, 2, 2\]"),
        (lambda: pc.SubMConv3d(4, 6, 3, groups=4), "groups must divide in_channels and out_channels, got groups 4"),
        (lambda: pc.SubMConv3d(0, 6, 3), "in_channels 0"),
        (lambda: pc.SparseConv3d(4, 6, [3, 3]), r"kernel_size must be an int or 3 ints of at least 1, got \[3, 3\]"),
        (lambda: pc.SparseConv3d(4, 6, 0), "kernel_size must be an int or 3 ints of at least 1, got 0"),
        (lambda: pc.SparseConv3d(4, 6, 2.5), "kernel_size must be an int or 3 ints of at least 1, got 2.5"),
        (lambda: pc.SparseConv3d(4, 6, 3, padding=-1), "padding must be an int or 3 ints of at least 0"),
        (lambda: pc.SparseConv3d(4, 6, 3, dilation=0), "dilation must be"),
        (lambda: pc.SparseConv3d(4, 6, 3, algo="fastest"), "algo must be None or one of ConvAlgo.Native"),
        (lambda: pc.SparseConv3d(4, 6, 3, fp32_accum=False), "fp32_accum must be None or True"),
        (lambda: SparseConvolution(3, 4, 6, subm=True, transposed=True), "one of subm, transposed and inverse"),
        (lambda: SparseConvolution(3, 4, 6, output_padding=1), "output_padding belongs to SparseConvTranspose"),
        (lambda: pc.convert_weight(torch.zeros(3, 3, 3, 4, 6), "KCRS"), "layout must be one of KRSC, RSKC, RSCK"),
        (lambda: pc.convert_weight(torch.zeros(4, 6), "KRSC"), r"must have 1 to 4 kernel axes.*float32 \[4, 6\]"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_rejected(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_inputs_are_rejected() -> None:
    layer = pc.SubMConv3d(4, 4, 3)
    x = random_cloud((4, 4, 4), 4, dtype=torch.float32)
    with pytest.raises(TypeError, match="input must be a SparseConvTensor, got Tensor"):
        layer(x.features)
    with pytest.raises(ValueError, match=r"input must have 4 channels, got features float32 \[38, 3\]"):
        layer(x.replace_feature(x.features[:, :3]))
    with pytest.raises(ValueError, match=r"input must have 3 axes, got spatial_shape \[4, 4\]"):
        layer(random_cloud((4, 4), 4))
    with pytest.raises(ValueError, match=r"dtype and device of the weight.*got features float64"):
        layer(x.to(torch.float64))
    with pytest.raises(ValueError, match=r"dtype and device of the weight.*got features int64"):
        layer(x.to(torch.int64))
    with pytest.raises(ValueError, match="add_input and residual"):
        layer(x, x, residual=x.features)
    with pytest.raises(ValueError, match="same coordinates in the same order"):
        layer(x, x.select_by_index(torch.arange(3)))
    for groups in (1, 2):
        with pytest.raises(ValueError, match=r"residual must be float32 \[38, 4\], got float32 \[3, 4\]"):
            pc.SubMConv3d(4, 4, 3, groups=groups)(x, residual=x.features[:3])
    for kernel in (1, 3):
        bad = pc.SubMConv3d(4, 4, kernel)
        bad.activation = "gelu"
        with pytest.raises(ValueError, match="activation must be one of none, relu, got 'gelu'"):
            bad(x)
    with pytest.raises(ValueError, match="the output grid would be"):
        pc.SparseConv3d(4, 4, 5)(x)


def test_record_voxel_count() -> None:
    layer = pc.SparseConv3d(4, 4, 2, 2, record_voxel_count=True)
    big, small = (random_cloud((6, 6, 6), 4, share=s, dtype=torch.float32) for s in (0.5, 0.02))
    most = len(layer(big).features)
    assert len(layer(small).features) < most
    assert layer.get_max_num_voxels().tolist() == [most] and layer.get_max_num_voxels().dtype == torch.int32
    assert pc.SparseConv3d(4, 4, 2).get_max_num_voxels() is None
    layer.load_state_dict(pc.SparseConv3d(4, 4, 2).state_dict())  # a checkpoint without the count
    assert layer.get_max_num_voxels().tolist() == [0]


@pytest.mark.parametrize("layout", ["KRSC", "RSKC", "RSCK"])
def test_convert_weight(layout: str) -> None:
    layer = pc.SparseConv3d(5, 7, (1, 2, 3))
    old = {"KRSC": lambda w: w, "RSKC": lambda w: w.permute(1, 2, 3, 0, 4), "RSCK": lambda w: w.permute(1, 2, 3, 4, 0)}
    stored = old[layout](layer.weight.detach()).contiguous()
    assert torch.equal(pc.convert_weight(stored, layout), layer.weight)
    if layout != "KRSC":
        state = {"0.weight": stored, "0.bias": layer.bias}
        hint = rf"0.weight has the layout {layout} \(spconv .*: state_dict = pointcloud.convert_state_dict\(state_dict,"
        with pytest.raises(RuntimeError, match=hint):
            pc.SparseSequential(pc.SparseConv3d(5, 7, (1, 2, 3))).load_state_dict(state)


def test_initial_weights_follow_the_fan_in() -> None:
    layer = pc.SubMConv3d(16, 32, 3, groups=2)
    bound = (8 * 27) ** -0.5
    for p in (layer.weight, layer.bias):
        assert p.abs().max() <= bound and p.abs().max() > 0.8 * bound


def test_numpy_sizes_and_repr() -> None:
    import numpy as np

    layer = pc.SparseConv3d(
        1, 2, np.array([3, 1, 1]), np.int64(2), padding=(np.int32(1), 0, 0), indice_key="a", bias=False
    )
    assert layer.kernel_size == [3, 1, 1] and layer.stride == [2, 2, 2] and layer.padding == [1, 0, 0]
    text = "SparseConv3d(1, 2, kernel_size=[3, 1, 1], stride=[2, 2, 2], padding=[1, 0, 0], bias=False, indice_key='a')"
    assert repr(layer) == text


def test_layers_survive_pickle_and_deepcopy() -> None:
    x = random_cloud((5, 5, 5), 4, dtype=torch.float32)
    net = pc.SparseSequential(pc.SubMConv3d(4, 4, 3), pc.SparseConv3d(4, 4, 2, 2), pc.SparseMaxPool3d(2))
    expected = net(x).features
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(other(x).features, expected)
