"""Pools against dense ones in float64 over the active cells."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import pointcloud as pc
from pointcloud.pool import SparseAvgPool, SparseMaxPool
from tests.pointcloud.dense_oracle import MAX_POOL, at, conv, per_axis, random_cloud, reached, scatter

SHAPES = {1: (23,), 2: (9, 8), 3: (6, 7, 5), 4: (5, 4, 4, 3)}
WINDOWS = [
    *((ndim, k, s, p, 1) for ndim in (1, 2, 3) for k, s, p in (
        (2, None, 0), (3, 2, 1), (3, 1, 1), (4, 3, 2), (1, 2, 0))),
    (2, (3, 2), (1, 2), (1, 0), (2, 1)), (3, 3, 2, 1, 2),
]  # fmt: skip


def negative_cloud(ndim: int, device: str) -> pc.SparseConvTensor:
    """All features negative, so that an empty cell taken for 0 would show."""
    x = random_cloud(SHAPES[ndim], 3, share=0.2, device=device)
    return x.replace_feature((-x.features.abs() - 0.1).requires_grad_())


@pytest.mark.parametrize(("ndim", "kernel", "stride", "padding", "dilation"), WINDOWS, ids=str)
def test_max_equals_dense(ndim, kernel, stride, padding, dilation, device) -> None:
    layer = getattr(pc, f"SparseMaxPool{ndim}d")(kernel, stride, padding, dilation)
    sizes = [per_axis(value, ndim) for value in (kernel, kernel if stride is None else stride, padding, dilation)]
    x = negative_cloud(ndim, device)
    y = layer(x)
    active = scatter(x, torch.ones_like(x.features)) > 0
    grid = torch.where(active, scatter(x), -torch.inf)
    pad = [side for p in reversed(sizes[2]) for side in (p, p)]
    grid = F.pad(grid, pad, value=-torch.inf)
    expected = MAX_POOL[ndim](grid, sizes[0], sizes[1], 0, sizes[3])
    assert y.spatial_shape == list(expected.shape[2:])
    assert torch.equal(y.indices.long(), reached(x, *sizes))
    expected = at(expected, y.indices)
    torch.testing.assert_close(y.features, expected)
    weights = torch.randn_like(expected)
    got = torch.autograd.grad((y.features * weights).sum(), x.features)[0]
    torch.testing.assert_close(got, torch.autograd.grad((expected * weights).sum(), x.features)[0])
    floored = getattr(pc, f"SparseMaxPool{ndim}d")(kernel, stride, padding, dilation, spconv_compat=True)(x)
    assert not floored.features.any() and torch.equal(floored.indices, y.indices)


@pytest.mark.parametrize(("ndim", "kernel", "stride", "padding", "dilation"), WINDOWS, ids=str)
def test_mean_equals_dense(ndim, kernel, stride, padding, dilation, device) -> None:
    layer = getattr(pc, f"SparseAvgPool{ndim}d")(kernel, stride, padding, dilation)
    x = negative_cloud(ndim, device)
    y = layer(x)
    size, *args = [per_axis(value, ndim) for value in (kernel, kernel if stride is None else stride, padding, dilation)]
    ones = torch.ones(1, 1, *size, dtype=torch.float64, device=device)
    count = at(conv(scatter(x, torch.ones_like(x.features[:, :1])), ones, *args), y.indices)
    channels = [at(conv(scatter(x, c), ones, *args), y.indices) for c in x.features.split(1, 1)]
    expected = torch.cat(channels, 1) / count
    torch.testing.assert_close(y.features, expected)
    weights = torch.randn_like(expected)
    got = torch.autograd.grad((y.features * weights).sum(), x.features)[0]
    torch.testing.assert_close(got, torch.autograd.grad((expected * weights).sum(), x.features)[0])


def by_hand(x: pc.SparseConvTensor, kernel: int, reduce) -> dict[tuple[int, ...], torch.Tensor]:
    """Windows with stride = kernel, cell by cell."""
    found: dict = {}
    for row, feature in zip(x.indices.tolist(), x.features):
        cell = (row[0], *(c // kernel for c in row[1:]))
        if all(c < n // kernel for c, n in zip(cell[1:], x.spatial_shape)):
            found.setdefault(cell, []).append(feature)
    return {cell: reduce(torch.stack(rows)) for cell, rows in found.items()}


@pytest.mark.parametrize("kind", ["Max", "Avg"])
def test_four_axes(kind: str, device: str) -> None:
    x = negative_cloud(4, device)
    y = getattr(pc, f"Sparse{kind}Pool4d")(2)(x)
    expected = by_hand(x, 2, (lambda r: r.amax(0)) if kind == "Max" else (lambda r: r.mean(0)))
    assert [tuple(row) for row in y.indices.tolist()] == sorted(expected)
    torch.testing.assert_close(y.features, torch.stack([expected[cell] for cell in sorted(expected)]))


@pytest.mark.parametrize("kernel", [2, 3, 4, (1, 3, 3)], ids=str)
@pytest.mark.parametrize("make", [SparseMaxPool, SparseAvgPool])
def test_submanifold_pool(make, kernel, device) -> None:
    x = negative_cloud(3, device)
    layer = make(3, kernel, subm=True)
    y = layer(x)
    assert y.coordinates is x.coordinates
    rows = {tuple(row): feature for row, feature in zip(x.indices.tolist(), x.features)}
    expected = []
    for batch, *cell in x.indices.tolist():
        reach = [range(c - k // 2, c - k // 2 + k) for c, k in zip(cell, layer.kernel_size)]
        window = torch.stack([rows[(batch, *c)] for c in itertools.product(*reach) if (batch, *c) in rows])
        expected.append(window.amax(0) if make is SparseMaxPool else window.mean(0))
    torch.testing.assert_close(y.features, torch.stack(expected))
    weights = torch.randn_like(y.features)
    got = torch.autograd.grad((y.features * weights).sum(), x.features)[0]
    torch.testing.assert_close(got, torch.autograd.grad((torch.stack(expected) * weights).sum(), x.features)[0])


@pytest.mark.parametrize("make", [pc.SparseMaxPool2d, pc.SparseAvgPool2d])
def test_gradcheck(make, device: str) -> None:
    x = random_cloud((5, 5), 2, batch_size=1, device=device)
    layer = make(3, 2, 1)
    features = x.features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: layer(x.replace_feature(f)).features, features)


def test_max_of_special_values(device: str) -> None:
    indices = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 4], [0, 5], [0, 6]], dtype=torch.int32)
    values = torch.tensor([1.0, torch.nan, 2.0, -torch.inf, -torch.inf, 7.0])[:, None].requires_grad_()
    x = pc.SparseConvTensor(values.to(device), indices.to(device), [8], 1)
    y = pc.SparseMaxPool1d(2)(x)
    assert y.indices[:, 1].tolist() == [0, 1, 2, 3]
    assert y.features[0].isnan() and y.features[1:, 0].tolist() == [2.0, -torch.inf, 7.0]
    y.features[1:].sum().backward()
    assert values.grad[:, 0].tolist() == [0, 0, 1, 1, 0, 1]  # the first of equals


def test_pools_leave_a_key_for_the_inverse(device: str) -> None:
    x = random_cloud((6, 6, 6), 3, dtype=torch.float32, device=device)
    for pool in (pc.SparseMaxPool3d(2, indice_key="p"), pc.SparseAvgPool3d(2, indice_key="p")):
        y = pc.SparseInverseConv3d(3, 4, 2, "p").to(device)(pool(x))
        assert y.coordinates is x.coordinates and y.features.shape[1] == 4
    with pytest.raises(ValueError, match="only a SparseConv or pooling layer can be inverted"):
        pc.SparseInverseConv3d(3, 4, 3, "s").to(device)(SparseMaxPool(3, 3, indice_key="s", subm=True)(x))


@pytest.mark.parametrize("make", [pc.SparseMaxPool3d, pc.SparseAvgPool3d])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes_and_empty(make, dtype: torch.dtype, device: str) -> None:
    x = random_cloud((6, 6, 6), 3, dtype=dtype, device=device)
    y, wide = make(3, 2, 1)(x), make(3, 2, 1)(x.to(torch.float64))
    assert y.features.dtype == dtype
    torch.testing.assert_close(y.features, wide.features.to(dtype))
    empty = make(3, 2, 1)(x.select_by_index(torch.zeros(len(x.features), dtype=torch.bool, device=device)))
    assert empty.features.shape == (0, 3) and empty.spatial_shape == [3, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("make", "reduce"), [
    (pc.SparseGlobalMaxPool, lambda r: r.amax(0)), (pc.SparseGlobalAvgPool, lambda r: r.mean(0)),
])  # fmt: skip
def test_global_pools(make, reduce, dtype, device) -> None:
    x = random_cloud((5, 5), 4, batch_size=3, dtype=dtype, device=device)
    x = x.select_by_index(x.indices[:, 0] != 1)  # sample 1 is empty
    x = x.replace_feature((x.features - 10).requires_grad_())
    y = make()(x)
    assert y.shape == (3, 4) and y.dtype == dtype
    rows = [x.features[x.indices[:, 0] == sample] for sample in range(3)]
    expected = torch.stack([reduce(r.double()).to(dtype) if len(r) else r.new_zeros(4) for r in rows])
    torch.testing.assert_close(y, expected)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda f: make()(x.replace_feature(f)), x.features.detach().requires_grad_())


def test_repeats_and_thread_counts_agree_bit_for_bit(device: str) -> None:
    x = random_cloud((16, 16, 16), 8, dtype=torch.float32, device=device)
    features = x.features.requires_grad_()
    before = torch.get_num_threads()
    layers = [pc.SparseMaxPool3d(3, 2, 1), pc.SparseAvgPool3d(3, 2, 1), pc.SparseGlobalAvgPool()]
    try:
        for layer in layers:
            results = []
            for threads in (1, 2, 2):
                torch.set_num_threads(threads)
                y = layer(x)
                out = y if torch.is_tensor(y) else y.features
                results.append((out.detach(), torch.autograd.grad((out**2).sum(), features)[0]))
            assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
    finally:
        torch.set_num_threads(before)


def test_record_voxel_count() -> None:
    x = random_cloud((6, 6, 6), 3)
    for make in (pc.SparseMaxPool3d, pc.SparseAvgPool3d):
        layer = make(2, record_voxel_count=True)
        assert layer.get_max_num_voxels().tolist() == [0] and make(2).get_max_num_voxels() is None
        n_out = len(layer(x).features)
        assert layer.get_max_num_voxels().tolist() == [n_out]
        assert list(layer.state_dict()) == ["max_num_voxels_during_training"]


def test_wrong_arguments_are_rejected() -> None:
    x = random_cloud((4, 4, 4), 3)
    with pytest.raises(ValueError, match="kernel_size must be an int or 3 ints"):
        pc.SparseMaxPool3d(0)
    with pytest.raises(ValueError, match="stride of a submanifold pool must be 1"):
        SparseMaxPool(3, 2, 2, subm=True)
    with pytest.raises(ValueError, match="algo must be None or one of"):
        pc.SparseAvgPool3d(2, algo=3)
    with pytest.raises(ValueError, match=r"input must have 2 axes, got spatial_shape \[4, 4, 4\]"):
        pc.SparseMaxPool2d(2)(x)
    with pytest.raises(ValueError, match="input must have floating features, got int64"):
        pc.SparseMaxPool3d(2)(x.to(torch.int64))
    for layer in (pc.SparseMaxPool3d(2), pc.SparseGlobalMaxPool()):
        with pytest.raises(TypeError, match="input must be a SparseConvTensor, got Tensor"):
            layer(x.features)
    outside = pc.SparseConvTensor(torch.ones(1, 1), torch.tensor([[3, 0]], dtype=torch.int32), [4], 2)
    with pytest.raises(ValueError, match="coords must lie in batch_size 2"):
        pc.SparseGlobalAvgPool()(outside)


def test_repr() -> None:
    assert repr(pc.SparseMaxPool2d(3, 2, 1, indice_key="p", spconv_compat=True)) == (
        "SparseMaxPool2d(kernel_size=[3, 3], stride=[2, 2], padding=[1, 1], indice_key='p', spconv_compat=True)"
    )
    assert "subm=True" in repr(SparseAvgPool(2, 3, subm=True))
