"""The output cells of strided and transposed maps on the CPU: those that some input reaches, each once, in order."""

import math
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from common_kernels.threads import parallel_for

END = np.iinfo(np.int64).max  # above every key: a pointer stops here without a test for the end of the list
_BLOCK = 1 << 15  # rows, and
_CANDIDATES = 1 << 18  # candidates, that are sorted together, in the cache


def reached_geometry(
    kind: str,
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_weights: Sequence[int],
) -> NDArray[np.int64]:
    """[7, 1 + D]: what `_candidates` knows of the batch (weight only) and of each axis."""
    reach = [(k - 1) * d for k, d in zip(kernel, dilation)]
    # Distance between outputs that one input reaches: every one of them must be a whole number of taps away.
    every = [d // math.gcd(s, d) for s, d in zip(stride, dilation)] if kind == "strided" else list(dilation)
    lines = [out_shape, stride, padding, dilation, reach, every]
    return np.array([[0, *line] for line in lines] + [out_weights], np.int64)


def reached(
    rows: NDArray, order: NDArray[np.int32], geometry: NDArray[np.int64], strided: bool, most: int, width: int
) -> NDArray[np.int64]:
    """The keys of all cells of the output grid that some input reaches, ascending, followed by `width` ends."""
    n = len(rows)
    block = max(1, min(_BLOCK, _CANDIDATES // most))
    parts: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * -(-n // block)
    _, stride, _, dilation, reach, _, _ = geometry[:, 1:]
    disjoint = strided and bool((reach < stride).all() and (dilation == 1).all())

    def collect(begin: int, end: int) -> None:
        for i in range(begin, end):
            first, last = i * block, min(n, (i + 1) * block)
            candidates = np.empty((last - first) * (1 if disjoint else most), np.int64)
            if disjoint:
                candidates = candidates[: _disjoint_candidates(rows, order, geometry, candidates, first, last)]
            else:
                candidates = candidates[: _candidates(rows, order, geometry, strided, candidates, first, last)]
            candidates.sort()
            parts[i] = candidates[: _unique(candidates)].copy()

    parallel_for(collect, len(parts), 1)
    keys = np.concatenate([*parts, np.full(width, END, np.int64)])
    if len(parts) > 1:
        keys.sort()
        n_out = _unique(keys[: len(keys) - width])
        keys[n_out : n_out + width] = END
        keys = keys[: n_out + width]
    return keys


@njit(nogil=True, cache=True, error_model="numpy")
def _disjoint_candidates(rows, order, geometry, out, begin, end):
    """As `_candidates` for a kernel no wider than the stride: each row reaches one cell at most."""
    extent, stride, padding, _, reach, _, weights = geometry
    n = 0
    for i in range(begin, end):
        row = order[i] if len(order) > 0 else np.int32(i)
        key, reached = np.int64(rows[row, 0]) * weights[0], True
        for axis in range(1, rows.shape[1]):
            x = np.int64(rows[row, axis]) + padding[axis]
            cell = np.int64(np.float64(x) / stride[axis])  # exact: x is far below 2**53
            reached &= (x - cell * stride[axis] <= reach[axis]) & (cell < extent[axis])
            key += cell * weights[axis]
        out[n] = key
        n += reached
    return n


@njit(nogil=True, cache=True, error_model="numpy")
def _candidates(rows, order, geometry, strided, out, begin, end):
    """Keys of the output cells that rows [begin, end) reach, some of them several times; their number."""
    extent, stride, padding, dilation, reach, every, weights = geometry
    spans, spare = reach // np.maximum(stride, 1), reach % np.maximum(stride, 1)
    n_axes = rows.shape[1]
    # Where rows reach one cell each on the last axis, sorting the repeated ones is cheaper than telling them apart.
    several = every[n_axes - 1] == 1 and (spans[n_axes - 1] > 0 or not strided)
    before = np.full(n_axes, -1, np.int64)
    before_first = before_last = np.int64(0)
    n = 0
    for i in range(begin, end):
        row = order[i] if len(order) > 0 else np.int32(i)
        x = np.int64(rows[row, 0])
        same_line = before[0] == x
        before[0] = x
        out[n] = x * weights[0]
        found = 1  # cells known up to this axis: the next one multiplies them
        for axis in range(1, n_axes):
            x = np.int64(rows[row, axis])
            if strided:
                x += padding[axis]
                last = np.int64(np.float64(x) / stride[axis])  # exact: x is far below 2**53
                beyond = x - last * stride[axis] > spare[axis]
                first = max(last - spans[axis] + beyond, 0)
                last = min(last, extent[axis] - 1)
                if dilation[axis] > 1:
                    while first <= last and (x - first * stride[axis]) % dilation[axis] != 0:
                        first += 1
            else:
                first = x * stride[axis] - padding[axis]
                last = min(first + reach[axis], extent[axis] - 1)
                if first < 0:
                    first += (dilation[axis] - 1 - first) // dilation[axis] * dilation[axis]
            step = every[axis]
            if axis < n_axes - 1:
                same_line &= before[axis] == rows[row, axis]
                before[axis] = rows[row, axis]
            else:
                low = first
                if several and same_line and first >= before_first:
                    first = max(first, before_last + 1)  # the row before has reached these in the same lines
                before_first, before_last = low, last
            count = np.int64(0)
            for y in range(first + step, last + 1, step):
                count += 1
                for cell in range(found):
                    out[n + count * found + cell] = out[n + cell] + y * weights[axis]
            if first <= last:
                count += 1
                for cell in range(found):
                    out[n + cell] += first * weights[axis]
            found *= count
        n += found
    return n


@njit(nogil=True, cache=True)
def _unique(keys):
    """Move the distinct ones of the ascending keys to the front; how many they are."""
    n = 0
    before = np.int64(-1)
    for i in range(len(keys)):
        key = keys[i]
        keys[n] = key
        n += key != before
        before = key
    return n


@njit(nogil=True, cache=True, error_model="numpy")
def unravel(keys, weights, rows, begin, end):
    n_axes = rows.shape[1]
    rest = keys[begin:end].copy()
    exact = keys[end - 1] < 2**53
    for axis in range(n_axes):
        weight = weights[axis]
        out = rows[begin:end, axis]
        if exact:  # float64 divides several keys at once
            for i in range(len(rest)):
                x = np.int64(np.float64(rest[i]) / np.float64(weight))
                rest[i] -= x * weight
                out[i] = x
        else:
            for i in range(len(rest)):
                x = rest[i] // weight
                rest[i] -= x * weight
                out[i] = x
