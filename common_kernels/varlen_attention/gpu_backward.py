"""The backward kernels of varlen attention: one program per block of queries for dq, one per block of keys for dk, dv.

Both compute the attention probabilities again from the log-sum-exp. Every output is written once, by one program, so
nothing is added atomically and repeated runs are equal bit for bit.
"""

import triton
import triton.language as tl

from common_kernels.varlen_attention.gpu_tiles import (
    RAGGED,
    find_tile,
    key_range,
    load_rows,
    query_range,
    segment_bounds,
    store_rows,
    visible,
)


@triton.jit(do_not_specialize=RAGGED)
def query_grad_kernel(
    dq_ptr,  # [T, H, D] contiguous
    delta_ptr,  # [H, T] fp32: sum over channels of grad * out, which the other kernel needs too
    grad_ptr,
    out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,  # [Tk] fp32, or None
    lse_ptr,  # [H, T]
    offsets_ptr,
    offsets_k_ptr,
    n_rows,
    n_keys,
    n_segments,
    n_heads,
    group,
    blocks_per_segment,
    window,
    scale,
    grad_stride_row,
    grad_stride_head,
    out_stride_row,
    out_stride_head,
    q_stride_row,
    q_stride_head,
    k_stride_row,
    k_stride_head,
    v_stride_row,
    v_stride_head,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEARCH_WIDTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    LOG2E: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    head = (pid % n_heads).to(tl.int64)
    tile = pid // n_heads
    segment, block, block_stride = find_tile(offsets_ptr, n_segments, tile, blocks_per_segment, BLOCK_M, SEARCH_WIDTH)
    begin, length = segment_bounds(offsets_ptr, segment, n_rows)
    begin_k, length_k = segment_bounds(offsets_k_ptr, segment, n_keys)
    shift = length_k - length
    dq_ptr += (begin * n_heads + head) * HEAD_DIM
    grad_ptr += begin * grad_stride_row + head * grad_stride_head
    out_ptr += begin * out_stride_row + head * out_stride_head
    q_ptr += begin * q_stride_row + head * q_stride_head
    k_ptr += begin_k * k_stride_row + (head // group) * k_stride_head
    v_ptr += begin_k * v_stride_row + (head // group) * v_stride_head
    lse_ptr += head * n_rows + begin
    delta_ptr += head * n_rows + begin
    if bias_ptr is not None:
        bias_ptr += begin_k
    n_blocks = tl.cdiv(length, BLOCK_M)
    for turn in range(block, n_blocks, block_stride):
        first = (n_blocks - 1 - turn if CAUSAL else turn) * BLOCK_M
        rows = first + tl.arange(0, BLOCK_M)
        last = tl.minimum(first + BLOCK_M, length) - 1
        q = load_rows(q_ptr, rows, rows < length, q_stride_row, HEAD_DIM, BLOCK_D)
        grad = load_rows(grad_ptr, rows, rows < length, grad_stride_row, HEAD_DIM, BLOCK_D)
        out = load_rows(out_ptr, rows, rows < length, out_stride_row, HEAD_DIM, BLOCK_D)
        delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
        tl.store(delta_ptr + rows, delta, mask=rows < length)
        lse = _log_sum(lse_ptr, rows, length)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        low, high = key_range(first + shift, last + shift, length_k, window, BLOCK_N, CAUSAL, WINDOW)
        for start in range(low, high, BLOCK_N):
            keys = start + tl.arange(0, BLOCK_N)
            k = load_rows(k_ptr, keys, keys < length_k, k_stride_row, HEAD_DIM, BLOCK_D)
            added = tl.where(keys < length_k, 0.0, -float("inf"))
            if bias_ptr is not None:
                added = tl.load(bias_ptr + keys, mask=keys < length_k, other=-float("inf")) * LOG2E
            logits = tl.dot(q, tl.trans(k), input_precision=INPUT_PRECISION) * (scale * LOG2E) + added[None, :]
            if CAUSAL or WINDOW:
                seen = visible((rows + shift)[:, None], keys[None, :], window, CAUSAL, WINDOW)
                logits = tl.where(seen, logits, -float("inf"))
            weights = tl.exp2(logits - lse[:, None])
            v = load_rows(v_ptr, keys, keys < length_k, v_stride_row, HEAD_DIM, BLOCK_D)
            grad_weights = tl.dot(grad, tl.trans(v), input_precision=INPUT_PRECISION)
            grad_logits = weights * (grad_weights - delta[:, None])
            acc = tl.dot(grad_logits.to(k.dtype), k, acc, input_precision=INPUT_PRECISION)
        store_rows(dq_ptr, acc * scale, rows, rows < length, n_heads * HEAD_DIM, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=RAGGED)
def key_grad_kernel(
    dk_ptr,  # [Tk, Hkv, D] contiguous
    dv_ptr,  # [Tk, Hkv, D] contiguous
    dbias_ptr,  # [Hkv, Tk] fp32, or None where bias_ptr is
    grad_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,  # [Tk] fp32, or None
    lse_ptr,  # [H, T]
    delta_ptr,  # [H, T]
    offsets_ptr,
    offsets_k_ptr,
    n_rows,
    n_keys,
    n_segments,
    n_heads_k,
    group,
    blocks_per_segment,
    window,
    scale,
    grad_stride_row,
    grad_stride_head,
    q_stride_row,
    q_stride_head,
    k_stride_row,
    k_stride_head,
    v_stride_row,
    v_stride_head,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
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
    grad_ptr += begin * grad_stride_row
    q_ptr += begin * q_stride_row
    lse_ptr += begin
    delta_ptr += begin
    dk_ptr += (begin_k * n_heads_k + head_k) * HEAD_DIM
    dv_ptr += (begin_k * n_heads_k + head_k) * HEAD_DIM
    k_ptr += begin_k * k_stride_row + head_k * k_stride_head
    v_ptr += begin_k * v_stride_row + head_k * v_stride_head
    # Causal: early keys have the most queries, and they come first anyway.
    for turn in range(block, tl.cdiv(length_k, BLOCK_N), block_stride):
        first = turn * BLOCK_N
        keys = first + tl.arange(0, BLOCK_N)
        inside = keys < length_k
        k = load_rows(k_ptr, keys, inside, k_stride_row, HEAD_DIM, BLOCK_D)
        v = load_rows(v_ptr, keys, inside, v_stride_row, HEAD_DIM, BLOCK_D)
        if bias_ptr is not None:
            added = tl.load(bias_ptr + begin_k + keys, mask=inside, other=0.0) * LOG2E
        dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dbias = tl.zeros([BLOCK_N], tl.float32)
        last = tl.minimum(first + BLOCK_N, length_k) - 1
        low, high = query_range(first, last, length, length, shift, window, CAUSAL, WINDOW, False)
        low = low // BLOCK_M * BLOCK_M
        n_blocks = tl.cdiv(tl.maximum(high - low, 0), BLOCK_M)
        # One flat loop over heads and query blocks, so that loads of the next head overlap this one's products.
        for step in range(0, group * n_blocks):
            head = head_k * group + step // n_blocks
            rows = low + (step % n_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
            q = load_rows(q_ptr + head * q_stride_head, rows, rows < length, q_stride_row, HEAD_DIM, BLOCK_D)
            lse = _log_sum(lse_ptr + head * n_rows, rows, length)
            logits = tl.dot(k, tl.trans(q), input_precision=INPUT_PRECISION) * (scale * LOG2E) - lse[None, :]
            if bias_ptr is not None:
                logits += added[:, None]
            if CAUSAL or WINDOW:
                seen = visible((rows + shift)[None, :], keys[:, None], window, CAUSAL, WINDOW)
                logits = tl.where(seen, logits, -float("inf"))
            weights = tl.exp2(logits)
            grad_head = grad_ptr + head * grad_stride_head
            grad = load_rows(grad_head, rows, rows < length, grad_stride_row, HEAD_DIM, BLOCK_D)
            dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=INPUT_PRECISION)
            delta = tl.load(delta_ptr + head * n_rows + rows, mask=rows < length, other=0.0)
            grad_weights = tl.dot(v, tl.trans(grad), input_precision=INPUT_PRECISION)
            grad_logits = weights * (grad_weights - delta[None, :])
            dk = tl.dot(grad_logits.to(q.dtype), q, dk, input_precision=INPUT_PRECISION)
            if dbias_ptr is not None:
                dbias += tl.sum(grad_logits, 1)
        store_rows(dk_ptr, dk * scale, keys, inside, n_heads_k * HEAD_DIM, HEAD_DIM, BLOCK_D)
        store_rows(dv_ptr, dv, keys, inside, n_heads_k * HEAD_DIM, HEAD_DIM, BLOCK_D)
        if dbias_ptr is not None:
            tl.store(dbias_ptr + head_k * n_keys + begin_k + keys, dbias, mask=inside)


@triton.jit
def _log_sum(lse_ptr, rows, length):
    """The log-sum-exp to base 2; infinite, which makes all weights zero, for rows outside or without a key."""
    lse = tl.load(lse_ptr + rows, mask=rows < length, other=float("inf"))
    return tl.where(lse == -float("inf"), float("inf"), lse * 1.4426950408889634)
