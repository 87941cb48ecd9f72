"""Kernel maps on the CPU: two sorted lists walked once for each line of taps. No hash table, sequential memory.

The queries of one tap are the sorted output keys plus one constant (see geometry.py), sorted as well, and two pointers
find all of them. Taps that differ only along the last axis lie in one window of consecutive keys and share a walk.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from common_kernels.kernel_map import reference
from common_kernels.kernel_map.cpu_outputs import END, reached, reached_geometry, unravel
from common_kernels.kernel_map.geometry import key_geometry
from common_kernels.threads import parallel_for

_GRAIN = 4096  # rows: below this a walk is over before another thread has woken up
_NO_ROWS = np.empty(0, np.int32)

Keys = NDArray[np.int64]
Rows = NDArray[np.int32]


def kernel_map(
    coords: Tensor,
    shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    batch_size: int,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """As `reference.kernel_map`, bit for bit."""
    geometry = key_geometry(shape, out_shape, kernel, stride, padding, dilation, batch_size, kind)
    if geometry is None:
        return reference.kernel_map(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind)
    n_taps, width = math.prod(kernel), geometry.width
    steps = np.array(geometry.steps, np.int64)
    rows = coords.contiguous().numpy()
    in_weights, out_weights = geometry.fine, geometry.coarse
    if kind == "transposed":
        in_weights, out_weights = out_weights, in_weights

    keys, order = _sorted_keys(coords, rows, in_weights, geometry.limit, shape, batch_size, width)
    if kind == "submanifold":
        table = torch.empty(n_taps, len(rows), dtype=torch.int32)
        _fill_table(keys[: len(rows)], keys, steps, width, order, order, table)
        return coords[:0].clone(), table
    axes = reached_geometry(kind, out_shape, kernel, stride, padding, dilation, out_weights)
    out_keys = reached(rows, order, axes, kind == "strided", n_taps, width)
    n_out = len(out_keys) - width
    out_coords = torch.empty(n_out, coords.shape[1], dtype=coords.dtype)
    parallel_for(unravel, n_out, _GRAIN, out_keys, np.array(out_weights, np.int64), out_coords.numpy())
    if kind == "strided":
        table = torch.empty(n_taps, n_out, dtype=torch.int32)
        _fill_table(out_keys[:n_out], keys, steps, width, _NO_ROWS, order, table)
    else:
        table = torch.full((n_taps, n_out), -1, dtype=torch.int32)
        queries = keys[: len(rows)]
        parallel_for(_walk_transposed, len(rows), _GRAIN, queries, out_keys, steps, width, order, table.numpy())
    return out_coords, table


def transpose_table(table: Tensor, n_in: int) -> Tensor:
    """As `reference.transpose_table`."""
    out = torch.empty(table.shape[0], n_in, dtype=torch.int32)
    unusual = np.zeros(1, np.bool_)  # an entry that is neither a row nor -1
    parallel_for(_transpose, table.shape[0], 1, table.contiguous().numpy(), out.numpy(), unusual)
    if unusual[0] and int(table.max()) >= n_in:
        raise ValueError(f"table must name rows below the {n_in} input rows, got row {int(table.max())}")
    return out


def _sorted_keys(
    coords: Tensor,
    rows: NDArray,
    weights: Sequence[int],
    limit: int,
    shape: Sequence[int],
    batch_size: int,
    width: int,
) -> tuple[Keys, Rows]:
    """The keys of the rows in ascending order, then `width` ends, and their rows, then -1 (none: they came sorted)."""
    n = len(rows)
    keys = np.empty(n + width, np.int64)
    keys[n:] = END
    flags = np.zeros(3, np.uint8)  # a row lies outside; rows are not sorted; a row repeats the one before
    extents = np.array([batch_size, *shape], np.int64)
    parallel_for(_ravel, n, _GRAIN, rows, np.array(weights, np.int64), extents, keys, flags)
    if flags[0]:
        reference.check_coords(coords, shape, batch_size)
    order = _NO_ROWS
    if flags[1]:
        bits = (n - 1).bit_length()
        order = np.empty(n + 1, np.int32)
        order[n] = -1
        if limit << bits < 2**63:
            packed = (keys[:n] << bits) | np.arange(n)
            packed.sort()
            parallel_for(_unpack, n, _GRAIN, packed, bits, keys, order, flags)
        else:
            by_key = np.argsort(keys[:n])
            parallel_for(_permute, n, _GRAIN, by_key, keys[:n].copy(), keys, order, flags)
    if flags[2]:
        reference.check_unique(reference.ravel(coords, shape))
    return keys, order


def _fill_table(
    queries: Keys, keys: Keys, steps: Keys, width: int, query_rows: Rows, key_rows: Rows, table: Tensor
) -> None:
    parallel_for(_walk, len(queries), _GRAIN, queries, keys, steps, width, query_rows, key_rows, table.numpy())


@njit(nogil=True, cache=True)
def _ravel(rows, weights, extents, keys, flags, begin, end):
    """Keys of rows [begin, end); flags[0] if one lies outside, [1] if they are not ascending, [2] if two are equal."""
    n_axes = rows.shape[1]
    outside = unsorted = repeated = False
    before = np.int64(-1)
    for i in range(max(begin - 1, 0), end):
        key = np.int64(0)
        for axis in range(n_axes):
            x = np.int64(rows[i, axis])
            outside |= (x < 0) | (x >= extents[axis])
            key += x * weights[axis]
        unsorted |= key < before
        repeated |= key == before
        before = key
        if i >= begin:
            keys[i] = key
    if outside:
        flags[0] = 1
    if unsorted:
        flags[1] = 1
    if repeated:
        flags[2] = 1


@njit(nogil=True, cache=True)
def _unpack(packed, bits, keys, order, flags, begin, end):
    """Keys and rows of the sorted `key << bits | row`."""
    repeated = False
    low = (np.int64(1) << bits) - 1
    before = packed[begin - 1] >> bits if begin > 0 else np.int64(-1)
    for i in range(begin, end):
        key = packed[i] >> bits
        repeated |= key == before
        before = key
        keys[i] = key
        order[i] = packed[i] & low
    if repeated:
        flags[2] = 1


@njit(nogil=True, cache=True)
def _permute(by_key, unsorted, keys, order, flags, begin, end):
    """As `_unpack`, for keys too large to be packed."""
    repeated = False
    before = unsorted[by_key[begin - 1]] if begin > 0 else np.int64(-1)
    for i in range(begin, end):
        key = unsorted[by_key[i]]
        repeated |= key == before
        before = key
        keys[i] = key
        order[i] = by_key[i]
    if repeated:
        flags[2] = 1


@njit(nogil=True, cache=True)
def _first_not_below(keys, target, low, high):
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < target:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def _split(queries, i, n_queries, keys, j, n_keys, step, n_moves):
    """How many of the first `n_moves` moves of the walk from (i, j) are moves to the next query."""
    low, high = max(0, n_moves - n_keys), min(n_moves, n_queries)
    while low < high:
        middle = (low + high) // 2
        if queries[i + middle] + step <= keys[j + n_moves - 1 - middle]:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def _lower_bounds(queries, begin, end, keys, n_keys, step, found):
    """found[i - begin] = the first of the keys that is not below queries[i] + step.

    Each move goes to the next query or to the next key, without a branch that could be guessed wrong. Four stretches of
    equally many moves run in turn, since each move waits for the one before.
    """
    one = np.uint64(1)
    j = _first_not_below(keys, queries[begin] + step, 0, n_keys)
    j_end = _first_not_below(keys, queries[end - 1] + step, j, n_keys)
    n_queries = end - begin
    n_moves = n_queries + j_end - j
    stretch = n_moves // 4
    first = _split(queries, begin, n_queries, keys, j, j_end - j, step, stretch)
    second = _split(queries, begin, n_queries, keys, j, j_end - j, step, 2 * stretch)
    third = _split(queries, begin, n_queries, keys, j, j_end - j, step, 3 * stretch)
    base = np.uint64(begin)
    i0, i1, i2, i3 = base, np.uint64(begin + first), np.uint64(begin + second), np.uint64(begin + third)
    j0, j1 = np.uint64(j), np.uint64(j + stretch - first)
    j2, j3 = np.uint64(j + 2 * stretch - second), np.uint64(j + 3 * stretch - third)
    for _ in range(stretch):
        found[i0 - base] = j0
        found[i1 - base] = j1
        found[i2 - base] = j2
        found[i3 - base] = j3
        below0 = np.uint64(keys[j0] < queries[i0] + step)
        below1 = np.uint64(keys[j1] < queries[i1] + step)
        below2 = np.uint64(keys[j2] < queries[i2] + step)
        below3 = np.uint64(keys[j3] < queries[i3] + step)
        j0 += below0
        j1 += below1
        j2 += below2
        j3 += below3
        i0 += one - below0
        i1 += one - below1
        i2 += one - below2
        i3 += one - below3
    while i3 < np.uint64(end):
        found[i3 - base] = j3
        below3 = np.uint64(keys[j3] < queries[i3] + step)
        j3 += below3
        i3 += one - below3
    for i in (first, second, third):  # the stretch before may have been there last, on its way to the next key
        found[i] = _first_not_below(keys, queries[begin + i] + step, j, j_end)


@njit(nogil=True, cache=True)
def _windows(queries, begin, end, keys, step, found, miss, lines, at):
    """lines[r, at + i] = number of the key at queries[begin + i] + step + r, or `miss`."""
    base, at = np.uint64(begin), np.uint64(at)
    for i in range(np.uint64(end - begin)):
        target = queries[i + base] + step
        j = np.uint64(found[i])
        for tap in range(np.uint64(len(lines))):
            hit = keys[j] == target
            lines[tap, i + at] = np.int32(j) if hit else miss
            j += np.uint64(hit)
            target += 1


@njit(nogil=True, cache=True)
def _walk(queries, keys, steps, width, query_rows, key_rows, table, begin, end):
    """table[k, row of query] = row of the key at query + step of tap k, or -1, for queries [begin, end).

    `key_rows` has a -1 behind its end. None of them: keys came sorted. No `query_rows`: queries are in order.
    """
    n_keys, n_queries = len(keys) - width, end - begin
    found = np.empty(n_queries, np.int32)
    moved = len(key_rows) > 0
    lines = np.empty((width, n_queries if moved else 0), np.int32)
    base = np.uint64(begin)
    for group in range(len(steps)):
        step = steps[group]
        taps = table[group * width : (group + 1) * width]
        _lower_bounds(queries, begin, end, keys, n_keys, step, found)
        if not moved:
            _windows(queries, begin, end, keys, step, found, np.int32(-1), taps, begin)
            continue
        _windows(queries, begin, end, keys, step, found, np.int32(n_keys), lines, 0)
        for tap in range(np.uint64(width)):  # one line at a time: it fits the cache
            for i in range(np.uint64(n_queries)):
                row = np.uint64(query_rows[i + base]) if len(query_rows) > 0 else i + base
                taps[tap, row] = key_rows[np.uint64(lines[tap, i])]


@njit(nogil=True, cache=True)
def _walk_transposed(queries, keys, steps, width, query_rows, table, begin, end):
    """table[k, number of the key at query + step of tap k] = row of query, for queries [begin, end)."""
    n_keys = len(keys) - width
    found = np.empty(end - begin, np.int32)
    base = np.uint64(begin)
    for group in range(len(steps)):
        step = steps[group]
        _lower_bounds(queries, begin, end, keys, n_keys, step, found)
        taps = table[group * width : (group + 1) * width]
        for i in range(np.uint64(begin), np.uint64(end)):
            target = queries[i] + step
            j = np.uint64(found[i - base])
            row = query_rows[i] if len(query_rows) > 0 else np.int32(i)
            for tap in range(np.uint64(width)):
                if keys[j] == target:
                    taps[tap, j] = row
                    j += np.uint64(1)
                target += 1


@njit(nogil=True, cache=True)
def _transpose(table, out, unusual, begin, end):
    n_in, others = np.uint32(out.shape[1]), np.uint32(0)
    for tap in range(begin, end):
        out[tap, :] = -1
        for row in range(table.shape[1]):
            source = np.uint32(table[tap, row])  # unsigned, -1 is too large as well
            if source < n_in:
                out[tap, source] = row
            else:
                others |= ~source
    if others != 0:
        unusual[0] = True
