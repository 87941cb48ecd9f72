"""SparseConvTensor: what it checks, what it gives back, what it shares."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch

import pointcloud as pc
from tests.pointcloud.dense_oracle import random_cloud, scatter

INDICES = torch.tensor([[0, 0, 0], [0, 1, 2], [1, 3, 4]], dtype=torch.int32)


def make(features=None, indices=INDICES, spatial_shape=(4, 5), batch_size=2, **kwargs) -> pc.SparseConvTensor:
    features = torch.arange(6.0).view(3, 2) if features is None else features
    return pc.SparseConvTensor(features, indices, spatial_shape, batch_size, **kwargs)


def test_properties() -> None:
    x = make(spatial_shape=np.array([4, 5]), batch_size=torch.tensor(2))
    assert x.features.shape == (3, 2) and x.indices is INDICES
    assert x.spatial_shape == [4, 5] and x.batch_size == 2 and x.spatial_size == 20 and x.sparity == 3 / 40
    assert x.indice_dict == {} and x.find_indice_pair("k") is None and x.find_indice_pair(None) is None
    assert x.grid is None and x.voxel_num is None and x.benchmark is False
    assert repr(x) == "SparseConvTensor(features=float32 [3, 2], spatial_shape=[4, 5], batch_size=2, device=cpu)"


def test_arguments_of_spconv_code_are_accepted() -> None:
    x = make(grid=torch.empty(0), permanent_thrust_allocator=True, force_algo=pc.ConvAlgo.Native)
    again = pc.SparseConvTensor(
        x.features, x.indices, x.spatial_shape, x.batch_size, x.grid, x.voxel_num, x.indice_dict, x.benchmark
    )
    assert again.coordinates.same_as(x.coordinates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": torch.zeros(3)}, r"features must be a tensor \[N, C\], got float32 \[3\]"),
        ({"features": torch.zeros(4, 2)}, r"one row for each of the 3 rows of indices, got float32 \[4, 2\]"),
        ({"features": torch.zeros(3, 2, device="meta")}, "must be on one device, got meta and cpu"),
        ({"indices": INDICES.float()}, r"indices must be int32 \[N, 1 \+ D\] with D from 1 to 4, got float32 \[3, 3\]"),
        ({"indices": INDICES[:, :1]}, r"got int32 \[3, 1\]"),
        ({"indices": INDICES[0]}, r"got int32 \[3\]"),
        ({"indices": torch.zeros(3, 6, dtype=torch.int32)}, r"got int32 \[3, 6\]"),
        ({"indices": INDICES.long() + 2**31}, "indices must fit int32, got values from 2147483648"),
        ({"spatial_shape": [4, 5, 6]}, r"must have 2 numbers for indices int32 \[3, 3\], got \[4, 5, 6\]"),
        ({"spatial_shape": [4, 0]}, "spatial_shape must be an int or 2 ints of at least 1"),
        ({"spatial_shape": [4, 5.5]}, "spatial_shape must be made of integers, got 5.5"),
        ({"spatial_shape": [2**40, 2**30]}, "keys reach 2"),
        ({"spatial_shape": [2**31, 1]}, r"below 2\*\*31 on each axis"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "2"}, "batch_size must be made of integers, got '2'"),
        ({"voxel_num": torch.tensor([3])}, "voxel_num is not supported"),
        ({"benchmark": True}, "benchmark is not supported: it must stay at its default, got True"),
        ({"enable_timer": True}, "enable_timer is not supported"),
        ({"force_algo": 1}, "force_algo must be None or one of"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_rejected(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_what_is_no_tensor_is_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"features must be a tensor \[N, C\], got list"):
        make(features=[[1.0]])
    with pytest.raises(TypeError, match=r"indices must be an int32 tensor \[N, 1 \+ D\], got list"):
        make(indices=INDICES.tolist())
    with pytest.raises(TypeError, match=r"x must be a tensor \[B, \*spatial_shape, C\], got list"):
        pc.SparseConvTensor.from_dense([[1.0]])


def test_int64_indices_become_int32() -> None:
    assert torch.equal(make(indices=INDICES.long()).indices, INDICES)
    assert make(indices=INDICES.long()).indices.dtype == torch.int32


def test_replace_feature_shares_everything_else() -> None:
    x = make()
    y = x.replace_feature(torch.zeros(3, 7))
    assert y.coordinates is x.coordinates and y.indice_dict is x.indice_dict and y.features.shape == (3, 7)
    z = x.shadow_copy()
    assert z is not x and z.features is x.features and z.coordinates is x.coordinates
    with pytest.raises(ValueError, match=r"feature must be a tensor \[N, C\], got float32 \[3\]"):
        x.replace_feature(torch.zeros(3))
    with pytest.raises(ValueError, match=r"use x = x.replace_feature\(features\)"):
        x.features = torch.zeros(3, 2)


def test_rows_that_differ_are_an_error_at_the_first_use() -> None:
    x = make().replace_feature(torch.zeros(2, 2))
    assert x.features.shape == (2, 2) and x.indices.shape == (3, 3)
    uses = (x.dense, lambda: x + x, lambda: x.to(torch.float64), lambda: pc.SubMConv2d(2, 2, 3)(x), lambda: x.sparity,
            lambda: pc.SubMConv2d(2, 2, 1)(x), lambda: pc.SparseMaxPool2d(2)(x), lambda: pc.sparse_add(x, x),
            lambda: pc.SparseGlobalAvgPool()(x), lambda: x.select_by_index(torch.tensor([0])), x.coalesce)  # fmt: skip
    for use in uses:
        with pytest.raises(ValueError, match=r"one row for each of the 3 rows of indices, got float32 \[2, 2\]"):
            use()


def test_assigned_rows_and_indices_lie_elsewhere() -> None:
    """As VoxelNeXt, FocalsConv and detectors that flatten the height do."""
    x = pc.SparseConv2d(2, 2, 2, 2, indice_key="down")(pc.SubMConv2d(2, 2, 3, indice_key="k")(make()))
    keys = dict(x.indice_dict)
    y = x.replace_feature(torch.cat([x.features, x.features[:1]]))
    y.indices = torch.cat([x.indices, torch.tensor([[1, 0, 0]], dtype=torch.int32)])
    assert y.indice_dict == {} and x.indice_dict == keys and x.coordinates is not y.coordinates
    fresh = pc.SparseConvTensor(y.features, y.indices, x.spatial_shape, x.batch_size)
    layer = pc.SubMConv2d(2, 2, 3, indice_key="k")
    assert torch.equal(layer(y).features, layer(fresh).features)
    with pytest.raises(ValueError, match="indice_key 'down' is not known"):
        pc.SparseInverseConv2d(2, 2, 2, "down")(y)

    flat = y.shadow_copy()
    flat.spatial_shape, flat.batch_size = [3, 3, 1], 5
    flat.indices = torch.cat([y.indices, torch.zeros(len(y.indices), 1, dtype=torch.int32)], 1)
    assert flat.dense().shape == (5, 2, 3, 3, 1) and torch.equal(flat.dense()[:2, :, :2, :2, 0], fresh.dense())
    assert y.spatial_shape == x.spatial_shape and repr(flat).count("[3, 3, 1]") == 1


def test_assigned_what_was_there_keeps_the_maps() -> None:
    x = pc.SparseConv2d(2, 2, 2, 2, indice_key="down")(make())
    y = x.shadow_copy()
    y.spatial_shape, y.batch_size, y.indices = x.spatial_shape, x.batch_size, x.indices.clone()
    up = pc.SparseInverseConv2d(2, 2, 2, "down")
    assert y.indice_dict is x.indice_dict and torch.equal(up(y).features, up(x).features)


def test_assigned_after_a_change_in_place_nothing_old_is_used() -> None:
    x = make(indices=INDICES.clone(), spatial_shape=(8, 8))
    layer = pc.SubMConv2d(2, 2, 3, indice_key="k")
    y = layer(x)
    y.indices[:, 1:] = torch.tensor([[1, 1], [7, 7], [1, 3]])
    y.indices = y.indices
    fresh = pc.SparseConvTensor(y.features, y.indices, y.spatial_shape, y.batch_size)
    assert y.indice_dict == {} and torch.equal(layer(y).features, layer(fresh).features)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("indices", [[0, 1]], "indices must be an int32 tensor .*got list"),
        ("indices", torch.zeros(3, 3), "indices must be int32 .*got float32"),
        ("spatial_shape", [4], "spatial_shape must have 2 numbers"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_assigned_values_are_checked(name: str, value: Any, error: str) -> None:
    x = make()
    with pytest.raises((TypeError, ValueError), match=error):
        setattr(x, name, value)
        x.dense()


def test_a_map_of_another_library_is_refused() -> None:
    x = make()
    x.indice_dict["k"] = {"pairs": 3}
    with pytest.raises(TypeError, match=r"indice_dict\['k'\] must be what a layer of this package put there"):
        pc.SubMConv2d(2, 2, 3, indice_key="k")(x)


def test_quantized_features_are_told_apart() -> None:
    x = make()
    assert not x.is_quantized and torch.equal(x.dequantize().features, x.features)
    with pytest.raises(ValueError, match="features must be quantized"):
        x.q_scale()


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 5), (2, 3, 4, 3)], ids=str)
def test_dense_and_back(shape, device) -> None:
    x = random_cloud(shape, 3, device=device)
    grid = x.dense()
    assert torch.equal(grid, scatter(x)) and grid.is_contiguous()
    assert torch.equal(x.dense(channels_first=False), grid.movedim(1, -1))
    assert torch.equal(pc.ToDense()(x), grid)
    back = pc.SparseConvTensor.from_dense(grid.movedim(1, -1))
    assert back.spatial_shape == list(shape) and back.batch_size == 2 and back.indices.dtype == torch.int32
    order = torch.argsort(x.coordinates.keys())
    assert torch.equal(back.indices, x.indices[order]) and torch.equal(back.features, x.features[order])


def test_dense_gradients() -> None:
    x = random_cloud((3, 4), 2)
    assert torch.autograd.gradcheck(lambda f: x.replace_feature(f).dense(), x.features.requires_grad_())
    grid = scatter(x).detach().movedim(1, -1).contiguous().requires_grad_()
    pc.SparseConvTensor.from_dense(grid).features.sum().backward()
    assert torch.equal(grid.grad != 0, (grid != 0).any(-1, keepdim=True).expand_as(grid))


def test_dense_of_nothing_and_of_no_channels() -> None:
    empty = make(torch.zeros(0, 2), INDICES[:0])
    assert torch.equal(empty.dense(), torch.zeros(2, 2, 4, 5))
    assert make(torch.zeros(3, 0)).dense().shape == (2, 0, 4, 5)
    assert pc.SparseConvTensor.from_dense(torch.zeros(2, 4, 5, 3)).features.shape == (0, 3)
    with pytest.raises(ValueError, match=r"x must be \[B, \*spatial_shape, C\] with 1 to 4 axes, got float32 \[2, 3\]"):
        pc.SparseConvTensor.from_dense(torch.zeros(2, 3))


def test_dense_rejects_duplicates_and_outsiders() -> None:
    with pytest.raises(ValueError, match="coords must be unique: row 1 repeats row 0"):
        make(indices=INDICES[[0, 0, 2]]).dense()
    with pytest.raises(ValueError, match=r"row 2 is \[1, 3, 4\]"):
        make(spatial_shape=(4, 4)).dense()
    with pytest.raises(ValueError, match="batch_size 1"):
        make(batch_size=1).dense()


def test_select_by_index() -> None:
    x = make()
    for index in (torch.tensor([True, False, True]), torch.tensor([0, 2])):
        y = x.select_by_index(index)
        assert torch.equal(y.indices, INDICES[[0, 2]]) and torch.equal(y.features, x.features[[0, 2]])
        assert y.indice_dict == {} and y.coordinates is not x.coordinates
    assert len(x.select_by_index(torch.zeros(3, dtype=torch.bool)).features) == 0
    with pytest.raises(ValueError, match="valid_indices must be a bool"):
        x.select_by_index(slice(2))


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "first"])
def test_coalesce(reduce: str, device: str) -> None:
    indices = torch.tensor([[1, 2], [0, 3], [1, 2], [0, 0], [0, 3], [1, 2]], dtype=torch.int32)
    features = torch.randn(6, 4, dtype=torch.float64)
    x = pc.SparseConvTensor(features.to(device), indices.to(device), [4], 2)
    y = x.coalesce(reduce)
    assert y.indices.tolist() == [[1, 2], [0, 3], [0, 0]]  # in order of first occurrence
    act = {"sum": lambda r: r.sum(0), "mean": lambda r: r.mean(0), "max": lambda r: r.amax(0), "first": lambda r: r[0]}
    expected = torch.stack([act[reduce](features[rows]) for rows in ([0, 2, 5], [1, 4], [3])])
    torch.testing.assert_close(y.features.cpu(), expected)
    if reduce == "sum":
        grid = torch.zeros(2, 4, 4, dtype=torch.float64)
        grid.index_put_(tuple(indices.long().unbind(1)), features, accumulate=True)
        torch.testing.assert_close(y.dense(channels_first=False).cpu(), grid)
    assert torch.autograd.gradcheck(
        lambda f: x.replace_feature(f).coalesce(reduce).features, x.features.clone().requires_grad_()
    )
    assert y.coalesce(reduce) is y
    with pytest.raises(ValueError, match="coords must be unique"):
        x.dense()


def test_coalesce_edges() -> None:
    empty = make(torch.zeros(0, 2), INDICES[:0])
    assert empty.coalesce() is empty
    one = make(torch.ones(3, 2), INDICES[[1, 1, 1]]).coalesce()
    assert one.features.tolist() == [[3.0, 3.0]]
    with pytest.raises(ValueError, match="reduce must be one of sum, mean, max, first, got 'min'"):
        make().coalesce("min")
    with pytest.raises(ValueError, match="coords must lie in"):
        make(batch_size=1).coalesce()


def test_add() -> None:
    x = make()
    assert torch.equal((x + x).features, 2 * x.features) and (x + x).coordinates is x.coordinates
    same = make(indices=INDICES.clone())
    assert torch.equal((x + same).features, 2 * x.features)
    for total in (x + x.features, x.features + x):
        assert torch.equal(total.features, 2 * x.features)
    assert torch.equal(x.minus().features, -x.features)
    y = x
    y += x
    assert y is not x and torch.equal(x.features, make().features)
    with pytest.raises(ValueError, match="same coordinates in the same order.*but other cells; sparse_add adds"):
        x + make(indices=INDICES.flip(0))
    with pytest.raises(ValueError, match="same coordinates in the same order"):
        x + make(spatial_shape=[5, 5])
    with pytest.raises(TypeError):
        x + "y"


def test_to() -> None:
    x = make()
    y = x.to(torch.float16)
    assert y.features.dtype == torch.float16 and y.coordinates is x.coordinates
    assert x.to("cpu").coordinates is x.coordinates and x.cpu().features.device.type == "cpu"
    away = pc.SubMConv2d(2, 2, 3, indice_key="k")(x).to("meta", torch.float64)
    assert away.features.device.type == away.indices.device.type == "meta" and away.features.dtype == torch.float64
    assert away.indice_dict == {}


def test_indices_changed_in_place_are_noticed() -> None:
    indices = INDICES.clone()
    x = make(indices=indices)
    layer = pc.SubMConv2d(2, 2, 3)
    layer(x)
    indices[0, 1] = 3
    for act in (lambda: layer(x), x.dense):
        with pytest.raises(ValueError, match="indices were modified in place"):
            act()
    layer(make(indices=indices))


def test_pickle_and_deepcopy() -> None:
    x = pc.SparseConv2d(2, 2, 2, 2, indice_key="d")(make())
    x = x.replace_feature(x.features.detach())
    for y in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert torch.equal(y.features, x.features) and torch.equal(y.indices, x.indices)
        up = pc.SparseInverseConv2d(2, 2, 2, "d")
        assert torch.equal(up(y).features, up(x).features)


def test_maps_die_with_their_tensors() -> None:
    """No reference cycle keeps tables alive until the collector runs."""
    x = random_cloud((6, 6, 6), 2, dtype=torch.float32)
    net = pc.SparseSequential(
        pc.SubMConv3d(2, 2, 3, indice_key="s"), pc.SparseConv3d(2, 2, 2, 2, indice_key="d"),
        pc.SubMConv3d(2, 2, 3), pc.SparseInverseConv3d(2, 2, 2, "d"),
    )  # fmt: skip
    gc.collect()
    gc.disable()
    try:
        y = net(x)
        watch = [weakref.ref(x.coordinates), weakref.ref(y.find_indice_pair("d").link.map)]
        del x, y
        assert [ref() for ref in watch] == [None, None]
    finally:
        gc.enable()


def test_sparse_add_over_the_union(device: str) -> None:
    a, b, c = (random_cloud((5, 6), 3, share=share, device=device) for share in (0.2, 0.4, 0.1))
    total = pc.sparse_add(a, b, c)
    torch.testing.assert_close(total.dense(), scatter(a) + scatter(b) + scatter(c))
    active = (scatter(a) != 0) | (scatter(b) != 0) | (scatter(c) != 0)
    assert len(total.features) == int(active.any(1).sum())
    x = [t.features.requires_grad_() for t in (a, b, c)]
    assert torch.autograd.gradcheck(
        lambda *f: pc.sparse_add(*(t.replace_feature(g) for t, g in zip((a, b, c), f))).features, x
    )


def test_sparse_add_counts_a_tensor_as_often_as_it_is_given() -> None:
    a, b = (random_cloud((5, 6), 3, share=share) for share in (0.4, 0.2))
    torch.testing.assert_close(pc.sparse_add(a, b, a).dense(), 2 * scatter(a) + scatter(b))
    torch.testing.assert_close(pc.sparse_add(b, a, b).dense(), scatter(a) + 2 * scatter(b))


def test_sparse_add_keeps_coordinates_where_it_can(device: str) -> None:
    x = random_cloud((6, 6, 6), 3, dtype=torch.float32, device=device)
    x = pc.SubMConv3d(3, 3, 3, indice_key="k").to(device)(x)
    part = x.select_by_index(torch.arange(10, 20, device=device))
    for total in (pc.sparse_add(part, x), pc.sparse_add(x, x), pc.sparse_add(x)):
        assert total.coordinates is x.coordinates and "k" in total.indice_dict
    torch.testing.assert_close(pc.sparse_add(part, x).dense(), scatter(part) + scatter(x))
    empty = x.select_by_index(torch.arange(0, device=device))
    assert len(pc.sparse_add(empty, empty).features) == 0


def test_sparse_add_errors() -> None:
    x = make()
    with pytest.raises(ValueError, match="at least one tensor"):
        pc.sparse_add()
    with pytest.raises(TypeError, match="takes SparseConvTensors, got Tensor"):
        pc.sparse_add(x, x.features)
    for other in (make(spatial_shape=[6, 6]), make(batch_size=3), make(torch.zeros(3, 4))):
        with pytest.raises(ValueError, match="one grid, batch size, channel count and device, got"):
            pc.sparse_add(x, other)
    with pytest.raises(ValueError, match="coords must be unique"):
        pc.sparse_add(x, make(indices=INDICES[[0, 0, 2]]))
