"""The forward kernel of varlen attention: one pass over the keys of a block of queries with a running maximum."""

import triton
import triton.language as tl

from common_kernels.varlen_attention.gpu_tiles import (
    RAGGED,
    find_tile,
    key_range,
    load_rows,
    query_rows,
    segment_bounds,
    store_rows,
    visible,
)


@triton.jit(do_not_specialize=RAGGED)
def forward_kernel(
    out_ptr,  # [T, H, D] contiguous, or None: only the log-sum-exp is written
    lse_ptr,  # [H, T]
    q_ptr,
    k_ptr,
    v_ptr,  # None where out_ptr is
    bias_ptr,  # [Tk] fp32, or None
    offsets_ptr,
    offsets_k_ptr,
    n_rows,
    n_keys,
    n_segments,
    n_heads,
    group,  # query heads that share a head of keys
    blocks_per_segment,
    queries,  # STRIDED: how many queries of each segment are wanted
    window,
    scale_log2,  # scale * log2(e)
    q_stride_row,
    q_stride_head,
    k_stride_row,
    k_stride_head,
    v_stride_row,
    v_stride_head,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEARCH_WIDTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    LN2: tl.constexpr = 0.6931471805599453
    # Heads of one tile run side by side: those of a group read the same keys.
    pid = tl.program_id(0)
    head = (pid % n_heads).to(tl.int64)
    tile = pid // n_heads
    segment, block, block_stride = find_tile(offsets_ptr, n_segments, tile, blocks_per_segment, BLOCK_M, SEARCH_WIDTH)
    begin, length = segment_bounds(offsets_ptr, segment, n_rows)
    begin_k, length_k = segment_bounds(offsets_k_ptr, segment, n_keys)
    # The last query stands at the last key.
    shift = length_k - length
    n_slots = length
    if STRIDED:
        n_slots = tl.minimum(length, queries)
    q_ptr += begin * q_stride_row + head * q_stride_head
    k_ptr += begin_k * k_stride_row + (head // group) * k_stride_head
    lse_ptr += head * n_rows + begin
    if out_ptr is not None:
        out_ptr += (begin * n_heads + head) * HEAD_DIM
        v_ptr += begin_k * v_stride_row + (head // group) * v_stride_head
    if bias_ptr is not None:
        bias_ptr += begin_k
    n_blocks = tl.cdiv(n_slots, BLOCK_M)
    for turn in range(block, n_blocks, block_stride):
        # Causal: late queries have the most keys, so they start first.
        slot = (n_blocks - 1 - turn if CAUSAL else turn) * BLOCK_M
        slots = slot + tl.arange(0, BLOCK_M)
        rows = query_rows(slots, length, n_slots, STRIDED)
        first = query_rows(slot, length, n_slots, STRIDED) + shift
        last = query_rows(tl.minimum(slot + BLOCK_M, n_slots) - 1, length, n_slots, STRIDED) + shift
        q = load_rows(q_ptr, rows, slots < n_slots, q_stride_row, HEAD_DIM, BLOCK_D)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        largest = tl.full([BLOCK_M], -float("inf"), tl.float32)

        low, high = key_range(first, last, length_k, window, BLOCK_N, CAUSAL, WINDOW)
        # Only blocks on the edge of what is visible need the test of each element: [low, whole), [whole_end, high).
        whole, whole_end = low, high
        if WINDOW:
            whole = tl.minimum(tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_N) * BLOCK_N, tl.maximum(high, low))
            if not CAUSAL:
                whole_end = tl.maximum(first + window, 0) // BLOCK_N * BLOCK_N
        if CAUSAL:
            whole_end = tl.maximum(first + 1, 0) // BLOCK_N * BLOCK_N
        if CAUSAL or WINDOW:
            whole_end = tl.maximum(tl.minimum(whole_end, high), whole)
        if WINDOW:
            acc, total, largest = _add_keys(
                acc, total, largest, q, k_ptr, v_ptr, bias_ptr, rows + shift, low, whole, length_k, window, scale_log2,
                k_stride_row, v_stride_row, True, CAUSAL, WINDOW, HEAD_DIM, BLOCK_D, BLOCK_N, INPUT_PRECISION,
            )  # fmt: skip
        acc, total, largest = _add_keys(
            acc, total, largest, q, k_ptr, v_ptr, bias_ptr, rows + shift, whole, whole_end, length_k, window,
            scale_log2, k_stride_row, v_stride_row, False, CAUSAL, WINDOW, HEAD_DIM, BLOCK_D, BLOCK_N, INPUT_PRECISION,
        )  # fmt: skip
        if CAUSAL or WINDOW:
            acc, total, largest = _add_keys(
                acc, total, largest, q, k_ptr, v_ptr, bias_ptr, rows + shift, whole_end, high, length_k, window,
                scale_log2, k_stride_row, v_stride_row, True, CAUSAL, WINDOW, HEAD_DIM, BLOCK_D, BLOCK_N,
                INPUT_PRECISION,
            )  # fmt: skip

        # A query that sees no key: zeros, and minus infinity for the logarithm of the empty sum.
        divisor = tl.where(total == 0, 1.0, total)
        tl.store(lse_ptr + rows, (largest + tl.log2(divisor)) * LN2, mask=slots < n_slots)
        if out_ptr is not None:
            out = acc / divisor[:, None]
            store_rows(out_ptr, out, rows, slots < n_slots, n_heads * HEAD_DIM, HEAD_DIM, BLOCK_D)


@triton.jit
def _add_keys(
    acc,
    total,
    largest,
    q,
    k_ptr,
    v_ptr,
    bias_ptr,
    positions,
    low,
    high,
    length_k,
    window,
    scale_log2,
    k_stride_row,
    v_stride_row,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Add the keys [low, high) to the weighted sum of values, the sum of weights and the largest logit (base 2)."""
    LOG2E: tl.constexpr = 1.4426950408889634
    for start in range(low, high, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, keys, keys < length_k, k_stride_row, HEAD_DIM, BLOCK_D)
        # The end of the keys costs nothing per element: it is part of the addend of the multiply-add.
        added = tl.where(keys < length_k, 0.0, -float("inf"))
        if bias_ptr is not None:
            added = tl.load(bias_ptr + keys, mask=keys < length_k, other=-float("inf")) * LOG2E
        logits = tl.dot(q, tl.trans(k), input_precision=INPUT_PRECISION) * scale_log2 + added[None, :]
        if MASKED:
            seen = visible(positions[:, None], keys[None, :], window, CAUSAL, WINDOW)
            logits = tl.where(seen, logits, -float("inf"))
        largest_now = tl.maximum(largest, tl.max(logits, 1))
        # Rows that have not seen a key yet.
        base = tl.where(largest_now == -float("inf"), 0.0, largest_now)
        weights = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        largest = largest_now
        if v_ptr is not None:
            v = load_rows(v_ptr, keys, keys < length_k, v_stride_row, HEAD_DIM, BLOCK_D)
            acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=INPUT_PRECISION)
    return acc, total, largest
