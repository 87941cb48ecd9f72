"""The hash table that models of torchsparse use directly."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.coordinate_table import CoordinateTable
from pointcloud.shims.lattice import Cells, taps


class GPUHashTable:
    """Rows of int64 keys or of coordinates, on any device.

    Args:
        keys, values: the original's storage; only their device matters here. A number is taken as a capacity.
    """

    def __init__(self, keys: Tensor | int, values: Tensor | None = None) -> None:
        self._table: CoordinateTable | None = None
        self._cells: Cells | None = None

    def insert_vals(self, keys: Tensor) -> None:
        """Store int64 keys [N]; they replace what was stored."""
        self._table = CoordinateTable(keys.flatten().long())

    def lookup_vals(self, keys: Tensor) -> Tensor:
        """One more than the row of each key, int32 [M]; 0 for one that is not stored."""
        if self._table is None:
            raise ValueError("lookup_vals needs insert_vals first")
        return self._table.lookup(keys.flatten().long()) + 1

    def insert_coords(self, coords: Tensor) -> None:
        """Store int coordinates [N, 4], batch index last; they replace what was stored."""
        self._cells = Cells(coords.roll(1, 1))

    def lookup_coords(self, coords: Tensor, kernel_size: Tensor, stride: Tensor, kernel_volume: int) -> Tensor:
        """One more than the rows of the cells around `coords * stride`, int32 [M, K]; 0 for a cell without a row."""
        if self._cells is None:
            raise ValueError("lookup_coords needs insert_coords first")
        kernel = [int(k) for k in kernel_size]
        base = coords.roll(1, 1).long() * torch.cat([stride.new_ones(1), stride]).long()
        found = []
        for tap in taps(kernel, first_axis_fastest=int(kernel_volume) % 2 == 1):
            offset = [r - (k - 1) // 2 for r, k in zip(tap, kernel)]
            found.append(self._cells.rows(base + base.new_tensor([0, *offset])) + 1)
        return torch.stack(found, 1)
