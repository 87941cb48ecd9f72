"""torchsparse's convolution against dense ones in float64, and its rules for cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pointcloud.shims import torchsparse
from pointcloud.shims.torchsparse.nn import functional as F
from pointcloud.shims.torchsparse.tensor import set_allow_negative_coordinates

GRID = (9, 7, 8)


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    F.set_kmap_mode("hashmap_on_the_fly")
    F.set_downsample_mode("spconv")
    set_allow_negative_coordinates(False)


def cloud(channels: int = 4, seed: int = 0) -> torchsparse.SparseTensor:
    torch.manual_seed(seed)
    occupied = torch.rand(2, *GRID) < 0.3
    occupied[:, -1, -1, -1] = True
    coords = occupied.nonzero().int()
    coords = coords[torch.randperm(len(coords))]
    return torchsparse.SparseTensor(torch.randn(len(coords), channels, dtype=torch.float64), coords)


def dense_weight(kernel: Tensor, size: tuple[int, int, int]) -> Tensor:
    """[Cout, Cin, k0, k1, k2] of torchsparse's [K, Cin, Cout]: axis 0 fastest where K is odd."""
    if kernel.shape[0] % 2:
        return kernel.reshape(size[2], size[1], size[0], *kernel.shape[1:]).permute(4, 3, 2, 1, 0)
    return kernel.reshape(*size, *kernel.shape[1:]).permute(4, 3, 0, 1, 2)


def dense(x: torchsparse.SparseTensor) -> Tensor:
    out = torch.zeros(2, x.feats.shape[1], *GRID, dtype=torch.float64)
    b, i, j, k = x.coords.long().unbind(1)
    return out.index_put((b[:, None], torch.arange(x.feats.shape[1]), i[:, None], j[:, None], k[:, None]), x.feats)


def at(grid: Tensor, coords: Tensor) -> Tensor:
    b, i, j, k = coords.long().unbind(1)
    return grid[b, :, i, j, k]


def weights(size: tuple[int, int, int]) -> Tensor:
    return torch.randn(size[0] * size[1] * size[2], 4, 5, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("size", [(3, 3, 3), (3, 1, 5), (2, 2, 2)])
def test_stride_one_keeps_the_cells(size: tuple[int, int, int]) -> None:
    x, kernel, bias = cloud(), weights(size), torch.randn(5, dtype=torch.float64)
    pad = tuple((k - 1) // 2 if k % 2 else 0 for k in size)
    out = F.conv3d(x, kernel, size, bias, 1, pad)
    assert out.coords is x.coords and out.stride == (1, 1, 1)
    grid = dense(x)
    grid = torch.nn.functional.pad(grid, [0, size[2] - 1, 0, size[1] - 1, 0, size[0] - 1]) if size[0] == 2 else grid
    expected = at(torch.nn.functional.conv3d(grid, dense_weight(kernel, size), bias, padding=pad), x.coords)
    torch.testing.assert_close(out.feats, expected)
    (mine,) = torch.autograd.grad(out.feats.square().sum(), kernel)
    (theirs,) = torch.autograd.grad(expected.square().sum(), kernel)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("size", "stride", "pad"),
    [
        ((2, 2, 2), 2, 0),
        ((3, 3, 3), 2, 1),
        ((3, 3, 3), (1, 1, 2), (1, 1, 0)),
        ((3, 3, 2), 2, 0),
        ((1, 1, 3), (1, 1, 2), 0),
    ],
)
def test_strided_rule_is_the_dense_one_up_to_the_end_of_the_data(
    size: tuple[int, int, int], stride: Any, pad: Any
) -> None:
    x, kernel = cloud(), weights(size)
    out = F.conv3d(x, kernel, size, None, stride, pad)
    options = {"stride": stride, "padding": pad}
    expected = torch.nn.functional.conv3d(dense(x), dense_weight(kernel, size), **options)
    full = torch.ones_like(dense_weight(kernel, size))[:1, :1]
    reached = torch.nn.functional.conv3d((dense(x)[:, :1] != 0).double(), full, **options)[:, 0] > 0
    assert sorted(out.coords.tolist()) == reached.nonzero().tolist()
    torch.testing.assert_close(out.feats, at(expected, out.coords))
    assert out.stride == torchsparse.utils.make_ntuple(stride, 3)


def test_transposed_layer_comes_back_with_the_same_taps() -> None:
    x, down, up = cloud(), weights((2, 2, 2)), torch.randn(8, 5, 3, dtype=torch.float64)
    y = F.conv3d(x, down, 2, None, 2)
    back = F.conv3d(y, up, 2, None, 2, transposed=True)
    assert back.coords is x.coords and back.stride == (1, 1, 1)
    coarse = {tuple(cell): row for row, cell in enumerate(y.coords.tolist())}
    for row, (b, *cell) in enumerate(x.coords.tolist()):
        parent = coarse.get((b, *[c // 2 for c in cell]))
        tap = [c % 2 for c in cell]
        weight = up[tap[0] * 4 + tap[1] * 2 + tap[2]]
        expected = y.feats[parent] @ weight if parent is not None else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(back.feats[row], expected)
    with pytest.raises(ValueError, match="a transposed layer with kernel_size"):
        F.conv3d(cloud(), down, 2, None, 2, transposed=True)


@pytest.mark.parametrize("down", ["minkowski", "spconv"])
def test_hashmap_mode_takes_the_floor(down: str) -> None:
    F.set_kmap_mode("hashmap")
    F.set_downsample_mode(down)
    x, kernel = cloud(), weights((2, 2, 2))
    out = F.conv3d(x, kernel, 2, None, 2)
    floors = {(b, i // 2, j // 2, k // 2) for b, i, j, k in x.coords.tolist()}
    assert sorted(map(tuple, out.coords.tolist())) == sorted(floors)
    grid = torch.nn.functional.pad(dense(x), [0, 1, 0, 1, 0, 1])
    expected = torch.nn.functional.conv3d(grid, dense_weight(kernel, (2, 2, 2)), stride=2)
    torch.testing.assert_close(out.feats, at(expected, out.coords))


def test_maps_are_found_once_and_not_for_other_cells() -> None:
    x, kernel = cloud(), weights((3, 3, 3))
    y = F.conv3d(x, kernel, 3, None, 1, 1)
    assert list(x._caches.kmaps) == list(y._caches.kmaps) and len(y._caches.kmaps) == 1
    other = cloud(seed=1)
    other._caches = x._caches
    out = F.conv3d(other, kernel, 3, None, 1, 1)
    torch.testing.assert_close(
        out.feats,
        at(torch.nn.functional.conv3d(dense(other), dense_weight(kernel, (3, 3, 3)), padding=1), other.coords),
    )


def test_negative_coordinates_only_when_allowed() -> None:
    x, kernel = cloud(), weights((3, 3, 3))
    moved = torchsparse.SparseTensor(x.feats, x.coords - torch.tensor([0, 4, 6, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match="coords must be at least 0, got -6"):
        F.conv3d(moved, kernel, 3, None, 1, 1)
    set_allow_negative_coordinates(True)
    expected = F.conv3d(x, kernel, 3, None, 1, 1)
    torch.testing.assert_close(F.conv3d(moved, kernel, 3, None, 1, 1).feats, expected.feats)


def test_refusals() -> None:
    x, kernel = cloud(), weights((3, 3, 3))
    with pytest.raises(NotImplementedError, match="dilation must be 1, got 2"):
        F.conv3d(x, kernel, 3, None, 1, 1, 2)
    with pytest.raises(NotImplementedError, match="generative=True"):
        F.conv3d(x, kernel, 3, None, 1, 1, generative=True, transposed=True)
    F.set_downsample_mode("minkowski")
    with pytest.raises(ValueError, match="needs set_kmap_mode"):
        F.conv3d(x, weights((2, 2, 2)), 2, None, 2)
    with pytest.raises(ValueError, match="kmap_mode must be one of 'hashmap_on_the_fly', 'hashmap', got 'grid'"):
        F.set_kmap_mode("grid")


def test_kernel_offsets_are_in_the_order_of_the_weights() -> None:
    offsets = torchsparse.nn.utils.get_kernel_offsets(3).tolist()
    assert offsets == [[x, y, z] for z, y, x in itertools.product([-1, 0, 1], repeat=3)]
    assert torchsparse.nn.utils.get_kernel_offsets(2).tolist() == [list(c) for c in itertools.product([0, 1], repeat=3)]
