"""What the kernels of varlen attention share: which tile a program owns, which rows it loads, what it may see."""

import triton
import triton.language as tl

# Arguments that change from batch to batch: none of their values may cost a compilation of its own.
RAGGED = ("n_rows", "n_keys", "n_segments", "blocks_per_segment", "queries", "window")


@triton.jit
def find_tile(offsets_ptr, n_segments, tile, blocks_per_segment, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """(segment, block within the segment, stride to its next block) of a tile, without a scan and without the host.

    Tiles are numbered as `gpu_launch.n_tiles` says, so a segment's first tile follows from its own offset alone and the
    search reads `WIDTH` of them at once: one step up to `WIDTH` segments, two up to its square. With
    `blocks_per_segment` > 0 every segment has that many programs, which take further blocks in turn if it is longer.
    """
    if blocks_per_segment > 0:
        segment = tile // blocks_per_segment
        block = tile % blocks_per_segment
        stride = tl.full((), 0, tl.int32) + blocks_per_segment
    else:
        lanes = tl.arange(0, WIDTH)
        segment = tl.full((), 0, tl.int32)
        left = tl.full((), 0, tl.int32) + n_segments
        while left > 1:
            step = tl.cdiv(left, WIDTH)
            candidates = segment + lanes * step
            offsets = tl.load(offsets_ptr + candidates, mask=lanes * step < left, other=0)
            before = (offsets // BLOCK + candidates <= tile) & (lanes * step < left)
            found = tl.maximum(tl.sum(before.to(tl.int32)) - 1, 0) * step
            segment += found
            left = tl.minimum(step, left - found)
        block = tile - (tl.load(offsets_ptr + segment) // BLOCK).to(tl.int32) - segment
        # Every block of the segment has a program of its own: nothing is taken in turn.
        stride = tl.full((), 1 << 24, tl.int32)
    return segment, block, stride


@triton.jit
def segment_bounds(offsets_ptr, segment, n_rows):
    """(first row as int64, length as int32); offsets outside of the rows are cut off there."""
    begin = tl.load(offsets_ptr + segment).to(tl.int64)
    end = tl.load(offsets_ptr + segment + 1).to(tl.int64)
    begin = tl.minimum(tl.maximum(begin, 0), n_rows)
    end = tl.minimum(tl.maximum(end, begin), n_rows)
    return begin, (end - begin).to(tl.int32)


@triton.jit
def query_rows(slots, length, n_slots, STRIDED: tl.constexpr):
    """Rows of a segment's queries; STRIDED takes `n_slots` of its `length` rows, evenly, the last one included."""
    if STRIDED:
        return (((slots + 1).to(tl.int64) * length) // n_slots).to(tl.int32) - 1
    else:
        return slots


@triton.jit
def load_rows(ptr, rows, inside, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] from `ptr`, which points to one head of row 0; zeros outside."""
    channels = tl.arange(0, BLOCK_D)
    ptrs = ptr + rows.to(tl.int64)[:, None] * stride + channels[None, :]
    if HEAD_DIM == BLOCK_D:
        return tl.load(ptrs, mask=inside[:, None], other=0.0)
    else:
        return tl.load(ptrs, mask=inside[:, None] & (channels < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store_rows(ptr, values, rows, inside, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """`values` [rows, BLOCK_D] to `ptr`, which points to one head of row 0."""
    channels = tl.arange(0, BLOCK_D)
    ptrs = ptr + rows.to(tl.int64)[:, None] * stride + channels[None, :]
    tl.store(ptrs, values.to(ptr.dtype.element_ty), mask=inside[:, None] & (channels < HEAD_DIM)[None, :])


@triton.jit
def visible(positions, keys, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Whether the query at a position, counted in keys, sees a key. `positions` and `keys` broadcast."""
    seen = keys == keys
    if CAUSAL:
        seen = keys <= positions
    if WINDOW:
        seen = seen & (positions - keys < window)
        if not CAUSAL:
            seen = seen & (keys - positions < window)
    return seen


@triton.jit
def key_range(first, last, n_keys, window, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Keys [low, high) that some query from position `first` to `last` may see; low is a multiple of BLOCK."""
    low = tl.full((), 0, tl.int32)
    high = tl.full((), 0, tl.int32) + n_keys
    if WINDOW:
        low = tl.maximum(first - window + 1, 0) // BLOCK * BLOCK
    if CAUSAL:
        high = tl.minimum(high, last + 1)
    elif WINDOW:
        high = tl.minimum(high, last + window)
    return low, high


@triton.jit
def query_range(
    first, last, n_rows, n_slots, shift, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, STRIDED: tl.constexpr
):
    """Slots [low, high) of the queries that may see some key from `first` to `last`.

    A query of row i stands at position i + shift, counted in keys.
    """
    low = tl.full((), 0, tl.int32)
    high = tl.full((), 0, tl.int32) + n_rows
    if CAUSAL:
        low = tl.maximum(first - shift, 0)
    elif WINDOW:
        low = tl.maximum(first - shift - window + 1, 0)
    if WINDOW:
        high = tl.maximum(tl.minimum(high, last - shift + window), 0)
    if STRIDED:
        # The first slot whose row is not below `low`, and the first one whose row is not below `high`.
        n_rows_wide = tl.maximum(n_rows, 1).to(tl.int64)
        low = (((low + 1).to(tl.int64) * n_slots + n_rows_wide - 1) // n_rows_wide - 1).to(tl.int32)
        high = (((high + 1).to(tl.int64) * n_slots + n_rows_wide - 1) // n_rows_wide - 1).to(tl.int32)
        high = tl.minimum(high, n_slots)
    return low, high
