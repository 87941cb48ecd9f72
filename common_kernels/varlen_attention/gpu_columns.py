"""Column sums of the attention probabilities, which is how much each key is attended to, without the matrix.

A program owns a block of keys of one head of keys and walks the queries of its group of heads: half of a forward pass,
O(keys) output, nothing added atomically.
"""

import triton
import triton.language as tl

from common_kernels.varlen_attention.gpu_tiles import (
    RAGGED,
    find_tile,
    load_rows,
    query_range,
    query_rows,
    segment_bounds,
    visible,
)


@triton.jit(do_not_specialize=RAGGED)
def column_sums_kernel(
    sums_ptr,  # [Hkv, Tk] fp32
    q_ptr,
    k_ptr,
    bias_ptr,  # [Tk] fp32, or None
    lse_ptr,  # [H, T]
    offsets_ptr,
    offsets_k_ptr,
    n_rows,
    n_keys,
    n_segments,
    n_heads_k,
    group,
    blocks_per_segment,
    queries,  # STRIDED: how many queries of each segment are looked at
    window,
    scale_log2,  # scale * log2(e)
    q_stride_row,
    q_stride_head,
    k_stride_row,
    k_stride_head,
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
    LOG2E: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    head_k = (pid % n_heads_k).to(tl.int64)
    tile = pid // n_heads_k
    segment, block, block_stride = find_tile(offsets_k_ptr, n_segments, tile, blocks_per_segment, BLOCK_N, SEARCH_WIDTH)
    begin, length = segment_bounds(offsets_ptr, segment, n_rows)
    begin_k, length_k = segment_bounds(offsets_k_ptr, segment, n_keys)
    shift = length_k - length
    n_slots = length
    if STRIDED:
        n_slots = tl.minimum(length, queries)
    q_ptr += begin * q_stride_row
    lse_ptr += begin
    k_ptr += begin_k * k_stride_row + head_k * k_stride_head
    for turn in range(block, tl.cdiv(length_k, BLOCK_N), block_stride):
        first = turn * BLOCK_N
        keys = first + tl.arange(0, BLOCK_N)
        inside = keys < length_k
        k = load_rows(k_ptr, keys, inside, k_stride_row, HEAD_DIM, BLOCK_D)
        if bias_ptr is not None:
            added = tl.load(bias_ptr + begin_k + keys, mask=inside, other=0.0) * LOG2E
        # Added up element by element: one reduction over the queries at the end instead of one per block.
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        last = tl.minimum(first + BLOCK_N, length_k) - 1
        low, high = query_range(first, last, length, n_slots, shift, window, CAUSAL, WINDOW, STRIDED)
        low = low // BLOCK_M * BLOCK_M
        n_blocks = tl.cdiv(tl.maximum(high - low, 0), BLOCK_M)
        for step in range(0, group * n_blocks):
            head = head_k * group + step // n_blocks
            slots = low + (step % n_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
            rows = query_rows(slots, length, n_slots, STRIDED)
            q = load_rows(q_ptr + head * q_stride_head, rows, slots < n_slots, q_stride_row, HEAD_DIM, BLOCK_D)
            lse = tl.load(lse_ptr + head * n_rows + rows, mask=slots < n_slots, other=float("inf"))
            # Rows outside, and those without a key, weigh nothing.
            lse = tl.where(lse == -float("inf"), float("inf"), lse * LOG2E)
            logits = tl.dot(q, tl.trans(k), input_precision=INPUT_PRECISION) * scale_log2 - lse[:, None]
            if bias_ptr is not None:
                logits += added[None, :]
            if CAUSAL or WINDOW:
                seen = visible((rows + shift)[:, None], keys[None, :], window, CAUSAL, WINDOW)
                logits = tl.where(seen, logits, -float("inf"))
            acc += tl.exp2(logits)
        sums = tl.sum(acc, 0)
        if STRIDED:
            sums *= length.to(tl.float32) / tl.maximum(n_slots, 1).to(tl.float32)
        tl.store(sums_ptr + head_k * n_keys + begin_k + keys, sums, mask=inside)
