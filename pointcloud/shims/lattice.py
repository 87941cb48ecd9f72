"""Kernel maps over integer cells without a grid: any offsets, negative coordinates, coordinates by the floor rule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common_kernels.coordinate_table import CoordinateTable
from common_kernels.gather_gemm import gather_gemm
from common_kernels.kernel_map import KernelMap


class Cells:
    """Finds the row of a cell among coords, int [N, 1 + D], batch index first."""

    def __init__(self, coords: Tensor) -> None:
        wide = coords.long()
        some = len(coords) > 0
        self.low = wide.amin(0) if some else wide.new_zeros(coords.shape[1])
        self.high = wide.amax(0) if some else wide.new_full((coords.shape[1],), -1)
        self.extent = (self.high - self.low + 1).tolist()
        if math.prod(max(extent, 1) for extent in self.extent) >= 2**63:
            raise ValueError(f"coordinates must span fewer than 2**63 cells, got {self.extent} along their columns")
        self.n = len(coords)
        self.table = CoordinateTable(self._keys(wide))

    def _keys(self, coords: Tensor) -> Tensor:
        key = coords[:, 0] - self.low[0]
        for axis in range(1, coords.shape[1]):
            key = key * self.extent[axis] + (coords[:, axis] - self.low[axis])
        return key

    def rows(self, coords: Tensor) -> Tensor:
        """The row of each cell, int32 [M], -1 where there is none; of repeated cells the first."""
        wide = coords.long()
        inside = ((wide >= self.low) & (wide <= self.high)).all(1)
        return self.table.lookup(torch.where(inside, self._keys(wide), -1))


def taps(kernel_size: Sequence[int], first_axis_fastest: bool) -> list[tuple[int, ...]]:
    """The indices of a kernel's taps in the order in which its weights are stored."""
    if not first_axis_fastest:
        return list(itertools.product(*map(range, kernel_size)))
    return [tap[::-1] for tap in itertools.product(*map(range, reversed(kernel_size)))]


def find_map(cells: Cells, target: Tensor, offsets: Sequence[Sequence[int]], symmetric: bool = False) -> KernelMap:
    """The map whose tap k reads the cell `target + offsets[k]`.

    Args:
        cells: the input rows.
        target: int [M, 1 + D], where the output rows read from: their coordinates in the units of the input.
        offsets: one per tap, D numbers each.
        symmetric: whether target is the input itself and the offsets are their own negatives in reverse order.
    """
    table = torch.empty(len(offsets), len(target), dtype=torch.int32, device=target.device)
    for tap, offset in enumerate(offsets):
        table[tap] = cells.rows(target + target.new_tensor([0, *offset]))
    return KernelMap(table, cells.n, target, tuple(1 for _ in offsets[0]), symmetric=symmetric)


def floor_to(coords: Tensor, steps: Sequence[int]) -> Tensor:
    """The cells that coords fall in when axis a has steps[a] of them merged, in the units of coords: sorted, unique."""
    step = coords.new_tensor([1, *steps])
    return torch.unique(torch.div(coords, step, rounding_mode="floor") * step, dim=0)


def convolve(feats: Tensor, map: KernelMap | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`gather_gemm` with weight [K, Cin, Cout]; a product with weight [Cin, Cout] without a map. Under autocast in its
    dtype."""
    device = feats.device.type
    if feats.dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        feats, weight, bias = feats.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if map is not None:
        return gather_gemm(feats, map, weight, bias)
    out = feats @ weight
    return out if bias is None else out + bias
