"""Sparse convolution by torchsparse 2.1's rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common_kernels.kernel_map import KernelMap, kernel_map
from pointcloud.shims.lattice import Cells, convolve, find_map, floor_to, taps
from pointcloud.shims.torchsparse.nn.functional.modes import get_downsample_mode, get_kmap_mode
from pointcloud.shims.torchsparse.tensor import SparseTensor, get_allow_negative_coordinates
from pointcloud.shims.torchsparse.utils.utils import make_ntuple

Triple = tuple[int, ...]


@dataclass
class Link:
    """A map from `source` to `target`, coordinates [N, 4] each, with the ranges of both."""

    map: KernelMap
    source: Tensor
    target: Tensor
    source_range: Triple | None
    target_range: Triple | None
    padding: Triple


def conv3d(
    input: SparseTensor,
    weight: Tensor,
    kernel_size: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    config: Any = None,
    transposed: bool = False,
    generative: bool = False,
    training: bool = False,
) -> SparseTensor:
    """Convolve. With a stride of 1 the output has the input's cells; transposed, those before the layer it undoes.

    A strided layer has the cells `out` of `in = out * stride - padding + r`, r from 0, in a grid that ends with the
    data where the input has no spatial_range: a k = 2, s = 2 layer loses a last plane of odd number, as in torchsparse
    2.1. `set_kmap_mode("hashmap")` takes the floor of the coordinates instead, as torchsparse 1.4 and 2.0 do.

    Raises:
        NotImplementedError: generative; a dilation, which the original accepts and ignores.
        ValueError: negative coordinates without `set_allow_negative_coordinates`, repeated ones, a transposed layer
            without the layer that it undoes.
    """
    kernel, steps, spread = (make_ntuple(each, ndim=3) for each in (kernel_size, stride, dilation))
    if generative:
        raise NotImplementedError("generative=True is not part of Trisparse's stand-in for torchsparse")
    if spread != (1, 1, 1) and max(kernel) > 1:
        raise NotImplementedError(
            f"dilation must be 1, got {dilation}: torchsparse 2.1 accepts others and ignores them"
        )
    if kernel == steps == (1, 1, 1):
        return input.with_feats(convolve(input.feats, None, weight.reshape(weight.shape[-2:]), bias))
    if transposed:
        return _transposed(input, weight, kernel, bias, steps, spread)
    link = _link(input, kernel, steps, spread, make_ntuple(padding, ndim=3), config or {})
    scale = tuple(a * b for a, b in zip(input.stride, steps))
    return _output(input, convolve(input.feats, link.map, weight, bias), link.target, scale, link.target_range)


def spdownsample(
    _coords: Tensor, stride: Any = 2, kernel_size: Any = 2, padding: Any = 0, spatial_range: Any = None,
    downsample_mode: str = "spconv",
) -> Tensor:  # fmt: skip
    """The output cells [M, 4] of a strided layer over cells [N, 4], by the rules of the kmap mode "hashmap"."""
    steps, kernel, pad = (make_ntuple(each, ndim=3) for each in (stride, kernel_size, padding))
    if downsample_mode not in ("spconv", "minkowski"):
        raise ValueError(f"downsample_mode must be 'spconv' or 'minkowski', got {downsample_mode!r}")
    if downsample_mode == "minkowski" or all(s in (1, k) for s, k in zip(steps, kernel)):
        return floor_to(_coords, steps) // _coords.new_tensor([1, *steps])
    return _dense_map(_coords, kernel, steps, pad, spatial_range)[1]


def _output(input: SparseTensor, feats: Tensor, coords: Tensor, stride: Triple, span: Triple | None) -> SparseTensor:
    out = SparseTensor(feats, coords, stride, span)
    out._caches = input._caches
    out._caches.cmaps.setdefault(stride, (coords, span))
    return out


def _transposed(
    input: SparseTensor, weight: Tensor, kernel: Triple, bias: Tensor | None, steps: Triple, spread: Triple
) -> SparseTensor:
    scale = tuple(a // b for a, b in zip(input.stride, steps))
    link = input._caches.kmaps.get((scale, kernel, steps, spread))
    if link is None or not _same(link.target, input.coords):
        raise ValueError(
            f"a transposed layer with kernel_size {kernel} and stride {steps} at stride {input.stride} undoes a layer "
            f"with the same numbers at stride {scale}, and the input has not passed one"
        )
    back = link.map.transpose(link.source, (1, 1, 1))
    return _output(input, convolve(input.feats, back, weight, bias), link.source, scale, link.source_range)


def _link(input: SparseTensor, kernel: Triple, steps: Triple, spread: Triple, pad: Triple, config: Any) -> Link:
    key = (input.stride, kernel, steps, spread)
    known = input._caches.kmaps.get(key)
    if known is not None and known.padding == pad and _same(known.source, input.coords):
        return known
    coords, span = input.coords, input.spatial_range
    if coords.dtype != torch.int32 or coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"coords must be int32 [N, 4], batch index first, got {coords.dtype} {list(coords.shape)}")
    if not get_allow_negative_coordinates() and len(coords) and int(coords.min()) < 0:
        raise ValueError(
            f"coords must be at least 0, got {int(coords.min())}; torchsparse.tensor.set_allow_negative_coordinates"
            "(True) admits negative ones"
        )
    mode = config.get("kmap_mode", get_kmap_mode())
    down = config.get("downsample_mode", get_downsample_mode())
    if mode == "hashmap":
        found, target = _hashmap(coords, kernel, steps, pad, span, down)
    elif down == "minkowski" and max(steps) > 1:
        raise ValueError(
            'downsample_mode "minkowski" needs set_kmap_mode("hashmap"); without it torchsparse ignores it'
        )
    elif max(steps) == 1:
        found, target = _submanifold(coords, kernel, pad), coords
    else:
        found, target = _dense_map(coords, kernel, steps, pad, span)
    link = Link(found, coords, target, span, _range(span, kernel, steps, pad), pad)
    input._caches.kmaps[key] = link
    input._caches.cmaps.setdefault(input.stride, (coords, span))
    return link


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)


def _range(span: Triple | None, kernel: Triple, steps: Triple, pad: Triple) -> Triple | None:
    if span is None:
        return None
    return (span[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in zip(span[1:], kernel, steps, pad)))


def _submanifold(coords: Tensor, kernel: Triple, pad: Triple) -> KernelMap:
    odd = [k % 2 == 1 for k in kernel]
    if not all(odd) and (any(odd) and max(k for k, o in zip(kernel, odd) if o) > 1):
        raise NotImplementedError(f"kernel_size must be odd or even on all axes where stride is 1, got {kernel}")
    if any(p != ((k - 1) // 2 if o else 0) for p, k, o in zip(pad, kernel, odd)):
        raise NotImplementedError(f"padding of a layer with stride 1 follows from its kernel_size {kernel}, got {pad}")
    start = [(k - 1) // 2 if o else 0 for k, o in zip(kernel, odd)]
    offsets = [[r - c for r, c in zip(tap, start)] for tap in taps(kernel, all(odd))]
    return find_map(Cells(coords), coords, offsets, symmetric=all(odd))


def _hashmap(
    coords: Tensor, kernel: Triple, steps: Triple, pad: Triple, span: Triple | None, down: str
) -> tuple[KernelMap, Tensor]:
    target = coords if max(steps) == 1 else spdownsample(coords, steps, kernel, pad, span, down)
    odd = all(k % 2 == 1 for k in kernel)
    offsets = [[r - (k - 1) // 2 for r, k in zip(tap, kernel)] for tap in taps(kernel, odd)]
    base = target * target.new_tensor([1, *steps])
    return find_map(Cells(coords), base, offsets, symmetric=odd and target is coords), target


def _dense_map(
    coords: Tensor, kernel: Triple, steps: Triple, pad: Triple, span: Triple | None
) -> tuple[KernelMap, Tensor]:
    """The map of a dense convolution within the grid of the data, or of `span`."""
    step = coords.new_tensor([1, *steps])
    low = torch.zeros_like(step)
    if len(coords):
        low = torch.div(coords.amin(0), step, rounding_mode="floor").clamp(max=0)
    shifted = coords - low * step
    high = shifted.amax(0).tolist() if len(coords) else [0, 0, 0, 0]
    grid = [n + 1 for n in high[1:]] if span is None else [n - int(a) for n, a in zip(span[1:], (low * step)[1:])]
    if min((n + 2 * p - k) // s + 1 for n, k, s, p in zip(grid, kernel, steps, pad)) < 1:
        empty = coords.new_empty(0, 4)
        table = torch.empty(kernel[0] * kernel[1] * kernel[2], 0, dtype=torch.int32, device=coords.device)
        return KernelMap(table, len(coords), empty, (1, 1, 1)), empty
    found = kernel_map(shifted, grid, kernel, steps, pad, batch_size=high[0] + 1, kind="strided")
    target = (found.coords + low).to(coords.dtype)
    table = found.table
    if all(k % 2 == 1 for k in kernel):
        order = torch.arange(len(table), device=table.device).view(kernel).permute(2, 1, 0).flatten()
        table = table[order].contiguous()
    return KernelMap(table, len(coords), target, (1, 1, 1)), target
