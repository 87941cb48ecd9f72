"""Kernel maps on a GPU, in Triton: binary search among sorted keys, one search for each line of taps.

Rows come sorted from voxelization and from every strided map, so the searches of one program stay within a few cache
lines; no hash table, no atomics, and the result does not depend on the order in which programs run.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.kernel_map import reference
from common_kernels.kernel_map.geometry import Geometry, key_geometry

BLOCK = 256  # two rows a thread: searching is bound by latency, so many small programs
_END = 2**63 - 1  # above every key


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
    """As `reference.kernel_map`, bit for bit.

    The host waits for the device once, to see whether the coordinates are valid and sorted; once more if they are not
    sorted, and once more for the number of outputs of a strided or transposed map.
    """
    geometry = key_geometry(shape, out_shape, kernel, stride, padding, dilation, batch_size, kind)
    if geometry is None:
        return reference.kernel_map(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind)
    coords = coords.contiguous()
    n_taps = math.prod(kernel)
    in_weights, out_weights = geometry.fine, geometry.coarse
    if kind == "transposed":
        in_weights, out_weights = out_weights, in_weights
    keys, order = _sorted_keys(coords, in_weights, shape, batch_size)
    if kind == "submanifold":
        table = coords.new_empty(n_taps, len(coords), dtype=torch.int32)
        _walk(table, keys, keys, geometry, order, order, transposed=False)
        return coords[:0].clone(), table
    out_keys = _reached(coords, out_shape, kernel, stride, padding, dilation, out_weights, kind == "strided")
    n_out = len(out_keys)
    out_coords = coords.new_empty(n_out, coords.shape[1])
    if n_out > 0:
        unravel_kernel[(triton.cdiv(n_out, BLOCK),)](
            out_coords, out_keys, _numbers(out_weights, coords), n_out, N_COLUMNS=coords.shape[1], BLOCK=BLOCK
        )
    if kind == "strided":
        table = coords.new_empty(n_taps, n_out, dtype=torch.int32)
        _walk(table, out_keys, keys, geometry, None, order, transposed=False)
    else:
        table = coords.new_full((n_taps, n_out), -1, dtype=torch.int32)
        _walk(table, keys, out_keys, geometry, order, None, transposed=True)
    return out_coords, table


def transpose_table(table: Tensor, n_in: int) -> Tensor:
    """As `reference.transpose_table`."""
    table = table.contiguous()
    n_taps, n_out = table.shape
    out = table.new_full((n_taps, n_in), -1)
    if n_taps > 0 and n_out > 0:
        transpose_kernel[(triton.cdiv(n_out, BLOCK), n_taps)](out, table, n_out, n_in, BLOCK=BLOCK)
    return out


def _numbers(values: Sequence[int], like: Tensor) -> Tensor:
    # In memory, not as arguments: Triton compiles a kernel anew for each width and divisibility of its integers.
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _sorted_keys(
    coords: Tensor, weights: Sequence[int], shape: Sequence[int], batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """The keys of the rows in ascending order, and their rows (None: they came sorted)."""
    n_rows, n_columns = coords.shape
    keys = coords.new_empty(n_rows, dtype=torch.int64)
    if n_rows == 0:
        return keys, None
    flags = coords.new_zeros(3, dtype=torch.int32)
    numbers = _numbers([*weights, batch_size, *shape], coords)
    grid = (triton.cdiv(n_rows, BLOCK),)
    ravel_kernel[grid](keys, flags, coords, numbers, n_rows, N_COLUMNS=n_columns, BLOCK=BLOCK)
    outside, unsorted, repeated = flags.tolist()
    if outside:
        reference.check_coords(coords, shape, batch_size)
    order = None
    if unsorted:
        keys, by_key = torch.sort(keys)
        order = by_key.to(torch.int32)
        repeated = bool((keys[1:] == keys[:-1]).any())
    if repeated:
        reference.check_unique(reference.ravel(coords, shape))
    return keys, order


def _reached(
    coords: Tensor,
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    weights: Sequence[int],
    strided: bool,
) -> Tensor:
    """The keys of all cells of the output grid that some input reaches, ascending."""
    # An input meets a strided output through every `period`-th tap of an axis, beginning with one that depends on it.
    periods = [s // math.gcd(s, d) if strided else 1 for s, d in zip(stride, dilation)]
    counts = [-(-k // period) for k, period in zip(kernel, periods)]
    axes = zip(weights[1:], out_shape, kernel, stride, padding, dilation, periods, counts, strict=True)
    numbers = _numbers([weights[0], *[number for axis in axes for number in axis]], coords)
    n_rows, n_columns = coords.shape
    # One end too many, so that the last of the distinct keys is certainly one that belongs to no cell.
    found = coords.new_full((math.prod(counts) * n_rows + 1,), _END, dtype=torch.int64)
    if n_rows > 0:
        reach_kernel[(triton.cdiv(n_rows, BLOCK), math.prod(counts))](
            found, coords, numbers, n_rows, N_COLUMNS=n_columns, STRIDED=strided, BLOCK=BLOCK
        )
    return torch.unique(found)[:-1]


def _walk(
    table: Tensor,
    queries: Tensor,
    keys: Tensor,
    geometry: Geometry,
    query_rows: Tensor | None,
    key_rows: Tensor | None,
    *,
    transposed: bool,
) -> None:
    n_queries, n_keys = len(queries), len(keys)
    if n_queries == 0 or n_keys == 0:
        table.fill_(-1)
        return
    n_walks = len(geometry.steps)
    search_kernel[(triton.cdiv(n_queries, BLOCK), n_walks)](
        table,
        queries,
        keys,
        _numbers(geometry.steps, table),
        queries if query_rows is None else query_rows,
        keys if key_rows is None else key_rows,
        n_queries,
        n_keys,
        n_keys.bit_length(),
        table.shape[1],
        geometry.width,
        QUERIES_MOVED=query_rows is not None,
        KEYS_MOVED=key_rows is not None,
        TRANSPOSED=transposed,
        BLOCK=BLOCK,
    )


@triton.jit
def ravel_kernel(keys_ptr, flags_ptr, coords_ptr, numbers_ptr, n_rows, N_COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Keys of all rows; flags[0] if a row lies outside, [1] if rows are not ascending, [2] if neighbours are equal."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = rows < n_rows
    key = tl.zeros((BLOCK,), tl.int64)
    before = tl.zeros((BLOCK,), tl.int64)
    outside = tl.zeros((BLOCK,), tl.int32)
    for column in tl.static_range(N_COLUMNS):
        weight = tl.load(numbers_ptr + column)
        extent = tl.load(numbers_ptr + N_COLUMNS + column)
        x = tl.load(coords_ptr + rows * N_COLUMNS + column, mask=real, other=0).to(tl.int64)
        y = tl.load(coords_ptr + (rows - 1) * N_COLUMNS + column, mask=real & (rows > 0), other=0).to(tl.int64)
        outside = outside | (x < 0).to(tl.int32) | (x >= extent).to(tl.int32)
        key += x * weight
        before += y * weight
    tl.store(keys_ptr + rows, key, mask=real)
    follows = real & (rows > 0)
    one = tl.full((BLOCK,), 1, tl.int32)
    zero = tl.zeros((BLOCK,), tl.int32)
    # Programs that store, store the same.
    tl.store(flags_ptr + zero, one, mask=real & (outside > 0))
    tl.store(flags_ptr + 1 + zero, one, mask=follows & (key < before))
    tl.store(flags_ptr + 2 + zero, one, mask=follows & (key == before))


@triton.jit
def reach_kernel(
    found_ptr,
    coords_ptr,
    numbers_ptr,
    n_rows,
    N_COLUMNS: tl.constexpr,
    STRIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """found[c, row] = key of the c-th output cell that the row reaches; what the buffer held where there is none."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    candidate = tl.program_id(1).to(tl.int64)
    place = candidate * n_rows + rows
    real = rows < n_rows
    key = tl.load(coords_ptr + rows * N_COLUMNS, mask=real, other=0).to(tl.int64) * tl.load(numbers_ptr)
    for axis in tl.static_range(N_COLUMNS - 1):
        axis_ptr = numbers_ptr + 1 + 8 * axis
        weight = tl.load(axis_ptr)
        extent = tl.load(axis_ptr + 1)
        taps = tl.load(axis_ptr + 2)
        stride = tl.load(axis_ptr + 3)
        padding = tl.load(axis_ptr + 4)
        dilation = tl.load(axis_ptr + 5)
        period = tl.load(axis_ptr + 6)
        count = tl.load(axis_ptr + 7)
        turn = candidate % count
        candidate = candidate // count
        x = tl.load(coords_ptr + rows * N_COLUMNS + 1 + axis, mask=real, other=0).to(tl.int64)
        if STRIDED:
            tap = tl.zeros((BLOCK,), tl.int64) + period
            for earlier in range(0, period):
                first = period - 1 - earlier
                tap = tl.where((x + padding - first * dilation) % stride == 0, first, tap)
            aligned = tap < period
            tap += turn * period
            cell = (x + padding - tap * dilation) // stride
            real = real & aligned
        else:
            tap = tl.zeros((BLOCK,), tl.int64) + turn
            cell = x * stride - padding + tap * dilation
        real = real & (tap < taps) & (cell >= 0) & (cell < extent)
        key += cell * weight
    tl.store(found_ptr + place, key, mask=real)


@triton.jit
def unravel_kernel(coords_ptr, keys_ptr, weights_ptr, n_rows, N_COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = rows < n_rows
    rest = tl.load(keys_ptr + rows, mask=real, other=0)
    for column in tl.static_range(N_COLUMNS):
        weight = tl.load(weights_ptr + column)
        x = rest // weight
        rest -= x * weight
        tl.store(coords_ptr + rows * N_COLUMNS + column, x.to(coords_ptr.dtype.element_ty), mask=real)


@triton.jit
def search_kernel(
    table_ptr,
    queries_ptr,
    keys_ptr,
    steps_ptr,
    query_rows_ptr,
    key_rows_ptr,
    n_queries,
    n_keys,
    n_halvings,
    n_columns,
    width,
    QUERIES_MOVED: tl.constexpr,
    KEYS_MOVED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """table[k, row of query] = row of the key at query + step of tap k, or -1.

    TRANSPOSED: table[k, row of key] = row of that query, and nothing where there is none.
    """
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = places < n_queries
    first_tap = tl.program_id(1).to(tl.int64) * width
    target = tl.load(queries_ptr + places, mask=real, other=0) + tl.load(steps_ptr + tl.program_id(1))
    low = tl.zeros((BLOCK,), tl.int64)
    high = low + n_keys
    for _ in range(n_halvings):
        open_ = low < high
        middle = (low + high) // 2
        below = open_ & (tl.load(keys_ptr + middle, mask=real & open_, other=0) < target)
        high = tl.where(open_ & (below == 0), middle, high)
        low = tl.where(below, middle + 1, low)
    row = places
    if QUERIES_MOVED:
        row = tl.load(query_rows_ptr + places, mask=real, other=0).to(tl.int64)
    for tap in range(width):
        inside = real & (low < n_keys)
        hit = inside & (tl.load(keys_ptr + low, mask=inside, other=0) == target + tap)
        there = low
        if KEYS_MOVED:
            there = tl.load(key_rows_ptr + low, mask=hit, other=0).to(tl.int64)
        line_ptr = table_ptr + (first_tap + tap) * n_columns
        if TRANSPOSED:
            tl.store(line_ptr + there, row.to(tl.int32), mask=hit)
        else:
            tl.store(line_ptr + row, tl.where(hit, there, -1).to(tl.int32), mask=real)
        low += hit.to(tl.int64)


@triton.jit
def transpose_kernel(out_ptr, table_ptr, n_out, n_in, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tap = tl.program_id(1).to(tl.int64)
    real = rows < n_out
    source = tl.load(table_ptr + tap * n_out + rows, mask=real, other=-1)
    tl.store(out_ptr + tap * n_in + source, rows.to(tl.int32), mask=real & (source >= 0) & (source < n_in))
