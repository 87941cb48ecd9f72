"""The peers: spconv, and plain torch (gather, multiply, add per tap), which is also the independent reference."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import Unavailable
from benchmarks.pointcloud.workloads import Workload

# --- plain torch ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """The pairs of a sparse convolution, tap by tap.

    Attributes:
        taps: for each tap, row-major over the kernel, (input rows, output rows), both [P] int64.
        coords: [M, 4] int32 output rows (batch, x, y, z).
        shape: cells of the output grid on each axis.
    """

    taps: list[tuple[Tensor, Tensor]]
    coords: Tensor
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(rows.numel() for rows, _ in self.taps)

    def turned(self, coords: Tensor, shape: Sequence[int]) -> Pairs:
        """Input and output exchanged: the pairs of the inverse convolution, whose outputs are at `coords`."""
        return Pairs([(out, rows) for rows, out in self.taps], coords, tuple(shape))


def torch_submanifold(coords: Tensor, shape: Sequence[int], kernel: int = 3) -> Pairs:
    """Pairs of an odd submanifold kernel: sorted keys and a binary search, half of the taps mirrored."""
    radius = kernel // 2
    padded = [n + 2 * radius for n in shape]  # a step to a neighbour never wraps into the next line
    keys = _ravel(coords, padded, radius)
    sorted_keys, order = keys.sort()
    steps = torch.tensor(list(itertools.product(range(-radius, radius + 1), repeat=3)))
    steps = (steps[:, 0] * padded[1] + steps[:, 1]) * padded[2] + steps[:, 2]
    half = len(steps) // 2
    everyone = torch.arange(len(keys), device=keys.device)
    first: list[tuple[Tensor, Tensor]] = []
    for step in steps[:half].tolist():
        position = torch.searchsorted(sorted_keys, sorted_keys + step).clamp_(max=max(len(keys) - 1, 0))
        hit = sorted_keys[position] == sorted_keys + step
        first.append((order[position[hit]], order[hit]))
    return Pairs([*first, (everyone, everyone), *((out, rows) for rows, out in reversed(first))], coords, tuple(shape))


Size = int | Sequence[int]


def torch_strided(coords: Tensor, shape: Sequence[int], kernel: Size, stride: Size, padding: Size) -> Pairs:
    """Pairs of a strided kernel with the meaning of a dense convolution; outputs are sorted."""
    sizes, steps, pads = ([n] * 3 if isinstance(n, int) else list(n) for n in (kernel, stride, padding))
    out_shape = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, sizes, steps, pads, strict=True))
    limit, step, pad = (torch.tensor(each, device=coords.device) for each in (out_shape, steps, pads))
    sources, targets = [], []
    for tap in itertools.product(*map(range, sizes)):
        scaled = coords[:, 1:].long() + pad - torch.tensor(tap, device=coords.device)
        out = torch.div(scaled, step, rounding_mode="floor")
        hit = ((out * step == scaled) & (out >= 0) & (out < limit)).all(1)
        sources.append(hit.nonzero().squeeze(1))
        targets.append(_ravel(torch.cat([coords[:, :1].long(), out], 1)[hit], out_shape))
    keys = torch.cat(targets).unique()
    taps = [(rows, torch.searchsorted(keys, target)) for rows, target in zip(sources, targets, strict=True)]
    columns = []
    for extent in reversed(out_shape):
        columns.append(keys % extent)
        keys = torch.div(keys, extent, rounding_mode="floor")
    return Pairs(taps, torch.stack([keys, *reversed(columns)], 1).int(), out_shape)


def torch_convolve(x: Tensor, pairs: Pairs, weight: Tensor) -> Tensor:
    """[N, Cin] -> [M, Cout] with weight [Cout, k, k, k, Cin]: for each tap gather, multiply, add. Differentiable."""
    taps = weight.reshape(weight.shape[0], -1, weight.shape[-1]).permute(1, 2, 0)  # [K, Cin, Cout]
    out = x.new_zeros(pairs.coords.shape[0], weight.shape[0])
    for (rows, targets), tap in zip(pairs.taps, taps, strict=True):
        if rows.numel():
            out.index_add_(0, targets, x.index_select(0, rows) @ tap)
    return out


def _ravel(coords: Tensor, shape: Sequence[int], offset: int = 0) -> Tensor:
    """int64 key of each row (batch, x, y, z) + offset in a grid of `shape`."""
    key = coords[:, 0].long()
    for axis, extent in enumerate(shape):
        key = key * extent + coords[:, 1 + axis].long() + offset
    return key


# --- what is compared -------------------------------------------------------------------------------------------------


def row_order(coords: Tensor) -> Tensor:
    """The permutation [N] that sorts rows by their coordinates (batch, x, y, z)."""
    extents = (coords.amax(0) + 1).tolist() if len(coords) else [1] * coords.shape[1]
    if math.prod(extents) >= 2**63:
        raise ValueError(f"coordinates up to {extents} do not fit one 64-bit key")
    return _ravel(coords, extents[1:]).argsort()


def by_coordinates(coords: Tensor, features: Tensor) -> Tensor:
    """Features in the order of their sorted coordinates: libraries number their output rows as they like."""
    return features[row_order(coords)]


def pairs_as_triples(
    taps: Sequence[tuple[Tensor, Tensor]], in_coords: Tensor, out_coords: Tensor, shape: Sequence[int]
) -> Tensor:
    """[P, 3] int64, sorted: (tap, key of the input cell, key of the output cell) of each pair."""
    in_keys, out_keys = _ravel(in_coords, shape), _ravel(out_coords, shape)
    triples = torch.cat(
        [
            torch.stack([torch.full_like(rows, tap, dtype=torch.int64), in_keys[rows.long()], out_keys[out.long()]], 1)
            for tap, (rows, out) in enumerate(taps)
        ]
    )
    for column in (2, 1, 0):
        triples = triples[triples[:, column].argsort(stable=True)]
    return triples


# --- spconv -----------------------------------------------------------------------------------------------------------


def spconv(variant: str = "spconv") -> ModuleType:
    """The `pytorch` module of an installed spconv or spconv-triton.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(f"{variant}.pytorch")
    except ImportError as error:
        raise Unavailable(f"{variant} is not installed ({error})") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """spconv 2.3.8's CPU kernels race and give wrong rows with more than one OpenMP thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spconv_map(
    module: ModuleType, coords: Tensor, shape: Sequence[int], kernel: int, stride: int, padding: int, submanifold: bool
) -> Any:
    """What spconv builds for one layer: its native pairs on a CPU, its masked tables for inference on a GPU."""
    sizes = [[n] * 3 for n in (kernel, stride, padding, 1, 0)]
    if coords.is_cuda:
        return module.ops.get_indice_pairs_implicit_gemm(
            coords, 1, list(shape), module.ConvAlgo.MaskImplicitGemm, *sizes, submanifold, is_train=False
        )
    with one_thread():
        return module.ops.get_indice_pairs(coords, 1, list(shape), module.ConvAlgo.Native, *sizes, submanifold)


def spconv_taps(built: Any, coords: Tensor, submanifold: bool) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """(input rows, output rows) of each tap and the output coordinates, from what `spconv_map` returned."""
    out_coords = built[0]
    if coords.is_cuda:
        return table_taps(built[2]), out_coords
    _, pairs, counts = built
    taps = [(pairs[0, k, :count], pairs[1, k, :count]) for k, count in enumerate(counts.tolist())]
    if submanifold:  # only half of the taps are stored; the others mirror them, and the middle is the row itself
        half = len(taps) // 2
        everyone = torch.arange(len(coords))
        taps = [*taps[:half], (everyone, everyone), *((out, rows) for rows, out in reversed(taps[:half]))]
    return taps, out_coords


def table_taps(table: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(input rows, output rows) of each tap of a table [K, M] of input rows, -1 for none."""
    taps = []
    for row in table:
        out = (row >= 0).nonzero().squeeze(1)
        taps.append((row[out].long(), out))
    return taps


def hand_maps(tensor: Any, output: Any) -> None:
    """Give an spconv tensor the submanifold maps that layers left with `output`; it offers no reuse of the others.

    spconv keeps a map with a layer's output only: called with the same input again, the layer would search again.
    """
    known = output.indice_dict.items()
    tensor.indice_dict = {key: data for key, data in known if getattr(data, "is_subm", True)}


def tensor_of(module: ModuleType, work: Workload, features: Tensor) -> Any:
    """The workload with `features` as a SparseConvTensor of `module`, which is spconv or has its names."""
    return module.SparseConvTensor(features, work.coords.to(features.device), list(work.shape), 1)
