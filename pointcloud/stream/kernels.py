"""Tables of pairs that are changed in place, on the CPU. A table is int32 [rows, K]: another side's row, or -1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]


@njit(nogil=True, cache=True)
def unlink(near: Array, far: Array, rows: Array, touched: Array) -> int:
    """Remove all pairs of rows of the near side, and mark their partners in `touched`; how many there were."""
    count = 0
    for i in range(len(rows)):
        row = rows[i]
        for k in range(near.shape[1]):
            other = near[row, k]
            if other >= 0:
                far[other, k] = -1
                touched[other] = True
                near[row, k] = -1
                count += 1
    return count


@njit(nogil=True, cache=True)
def move(near: Array, far: Array, source: Array, target: Array) -> None:
    """Rows of the near side move to other, empty places."""
    for i in range(len(source)):
        before, now = source[i], target[i]
        for k in range(near.shape[1]):
            other = near[before, k]
            near[now, k] = other
            near[before, k] = -1
            if other >= 0:
                far[other, k] = now


@njit(nogil=True, cache=True)
def link(near: Array, far: Array, rows: Array, found: Array, touched: Array) -> int:
    """Pairs of near rows with `found` [len(rows), K], -1 for none; partners are marked. How many there were not yet."""
    count = 0
    for i in range(len(rows)):
        row = rows[i]
        for k in range(near.shape[1]):
            other = found[i, k]
            if other >= 0:
                count += near[row, k] < 0
                near[row, k] = other
                far[other, k] = row
                touched[other] = True
    return count


@njit(nogil=True, cache=True)
def spread(table: Array, rows: Array, marks: Array) -> None:
    """Mark the partners of rows."""
    for i in range(len(rows)):
        row = rows[i]
        for k in range(table.shape[1]):
            other = table[row, k]
            if other >= 0:
                marks[other] = True


@njit(nogil=True, cache=True)
def is_empty(table: Array, rows: Array, empty: Array) -> None:
    """Whether each of the rows has no partner."""
    for i in range(len(rows)):
        row = rows[i]
        alone = True
        for k in range(table.shape[1]):
            if table[row, k] >= 0:
                alone = False
                break
        empty[i] = alone


@njit(nogil=True, cache=True)
def columns(table: Array, rows: Array, out: Array, begin: int, end: int) -> None:
    """out[k, i] = table[rows[i], k] for i in [begin, end)."""
    for i in range(begin, end):
        row = rows[i]
        for k in range(table.shape[1]):
            out[k, i] = table[row, k]


@njit(nogil=True, cache=True)
def keys_of(indices: Array, extents: Array, keys: Array) -> bool:
    """The key of each of indices [N, 1 + D] in a batch of grids of these extents [1 + D]; whether all lie inside."""
    inside = True
    for i in range(len(indices)):
        key = np.int64(0)
        for axis in range(len(extents)):
            x = np.int64(indices[i, axis])
            inside &= (x >= 0) & (x < extents[axis])
            key = key * extents[axis] + x
        keys[i] = key
    return inside


@njit(nogil=True, cache=True)
def meet(places: Array, stays: Array, unknown: Array, gone: Array) -> tuple[int, int, bool]:
    """List the rows that are at no place (-1), and the places at which no row is.

    stays: as many False as there are places. Returns the length of both lists, and whether no place is met twice.
    """
    n_unknown = n_gone = 0
    once = True
    for i in range(len(places)):
        place = places[i]
        if place < 0:
            unknown[n_unknown] = i
            n_unknown += 1
        else:
            once &= not stays[place]
            stays[place] = True
    for place in range(len(stays)):
        if not stays[place]:
            gone[n_gone] = place
            n_gone += 1
    return n_unknown, n_gone, once


@njit(nogil=True, cache=True)
def reached(indices: Array, factor: Array, shifts: Array, divisor: Array, extents: Array, keys: Array) -> None:
    """The keys [N, K] of the cells `(cell * factor + shift) / divisor`, -1 where these are no cells of the grid.

    indices [N, 1 + D], shifts [K, D], extents [1 + D], the first one of the batch.
    """
    for i in range(len(indices)):
        for k in range(len(shifts)):
            key = np.int64(indices[i, 0])
            for axis in range(len(factor)):
                x = np.int64(indices[i, 1 + axis]) * factor[axis] + shifts[k, axis]
                cell = x // divisor[axis]
                if cell * divisor[axis] != x or cell < 0 or cell >= extents[1 + axis]:
                    key = np.int64(-1)
                    break
                key = key * extents[1 + axis] + cell
            keys[i, k] = key
