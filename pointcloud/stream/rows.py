"""The rows of one level of a network, in places that most of them keep from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common_kernels.coordinate_table import CoordinateTable
from common_kernels.kernel_map.reference import check_coords, check_unique, ravel, unravel


@dataclass(frozen=True)
class Change:
    """How the rows of a level changed from the frame before to this one; each int64.

    Attributes:
        gone: places, in the order of the frame before, of the rows that vanished.
        source, target: rows that moved from the end into places that nothing else filled.
        new: places of the rows that appeared.
        before: number of rows before.
    """

    gone: Tensor
    source: Tensor
    target: Tensor
    new: Tensor
    before: int

    def follow(self, places: Tensor) -> Tensor:
        """Where rows are now that were at these places before and did not vanish."""
        if not len(self.source):
            return places
        now = torch.arange(self.before)
        now[self.source] = self.target
        return now[places]


class Rows:
    """Rows 0 to n - 1 of one level. A row stays in its place until it vanishes or fills another's place.

    Attributes:
        indices: int32 [n, 1 + D], batch index first.
        order: int64 [n], the place of each row in the order in which the network as a whole would have the rows.
        change: from the frame before to this one; None where all rows are new.
        pairs: the kernel maps from here.
    """

    def __init__(self, indices: Tensor, shape: Sequence[int], batch_size: int) -> None:
        self.indices = indices
        self.shape = tuple(shape)
        self.batch_size = batch_size
        self.keys = ravel(indices, self.shape)
        self.change: Change | None = None
        self.pairs: dict[Any, Any] = {}
        self._order: Tensor | None = None
        self._table: CoordinateTable | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def start(self) -> None:
        """The rows came in the order of their places."""
        self._order = torch.arange(len(self))

    @property
    def order(self) -> Tensor:
        if self._order is None:  # as kernel maps sort the outputs of a layer
            self._order = torch.argsort(self.keys)
        return self._order

    def find(self, keys: Tensor) -> Tensor:
        """The place of each key, -1 for none: int64."""
        if self._table is None:
            self._table = CoordinateTable(self.keys)
        return self._table.lookup(keys).long()

    def become(self, gone: Tensor, keys: Tensor) -> Change:
        """Let the rows at places `gone` (ascending) vanish and rows of these keys appear."""
        before, n_new = len(self), len(keys)
        n = before - len(gone) + n_new
        if n_new >= len(gone):
            new = torch.cat([gone, torch.arange(before, n)])
            source = target = gone[:0]
        else:
            new, holes = gone[:n_new], gone[n_new:]
            target = holes[holes < n]
            tail = torch.ones(before - n, dtype=torch.bool)
            tail[holes[holes >= n] - n] = False
            source = tail.nonzero().squeeze(1) + n
        self.change = Change(gone, source, target, new, before)
        if len(gone) or n_new:
            self.keys = moved(self.keys, self.change, n)
            self.keys[new] = keys
            self.indices = moved(self.indices, self.change, n)
            self.indices[new] = unravel(keys, self.shape).to(torch.int32)
            self._table = self._order = None
        return self.change

    def meet(self, indices: Tensor) -> Change:
        """Become the rows of these coordinates [N, 1 + D], in whatever order they come.

        Raises ValueError for a coordinate outside of the grid, or one that occurs twice.
        """
        from pointcloud.stream import kernels

        keys = torch.empty(len(indices), dtype=torch.int64)
        if not kernels.keys_of(indices.numpy(), np.array([self.batch_size, *self.shape]), keys.numpy()):
            check_coords(indices, self.shape, self.batch_size)
        places = self.find(keys)
        unknown, gone = torch.empty(len(keys), dtype=torch.int64), torch.empty(len(self), dtype=torch.int64)
        stays = np.zeros(len(self), np.bool_)
        n_unknown, n_gone, once = kernels.meet(places.numpy(), stays, unknown.numpy(), gone.numpy())
        unknown = unknown[:n_unknown]
        fresh = keys[unknown]
        if not once or bool((CoordinateTable(fresh).lookup(fresh) != torch.arange(n_unknown)).any()):
            check_unique(keys)
        change = self.become(gone[:n_gone], fresh)
        order = change.follow(places.clamp_(min=0)) if len(change.source) else places
        order[unknown] = change.new
        self._order = order
        return change


def moved(x: Tensor, change: Change, n: int) -> Tensor:
    """x [before, ...] as [n, ...] with its rows in the places of now; those of new rows hold anything."""
    out = x[:n].clone() if n <= len(x) else torch.cat([x, x.new_empty(n - len(x), *x.shape[1:])])
    out[change.target] = x[change.source]
    return out
