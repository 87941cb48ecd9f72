"""The best rows of each segment on a GPU, in Triton: the threshold bit by bit, then one pass that writes."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def ragged_topk(
    score: Tensor, offsets: Tensor, keep: Tensor, total: int | None = None, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Waits for the device only where `total` is None. `index`, where given, is written to: int64 [total]."""
    score, offsets, keep = score.contiguous(), offsets.contiguous(), keep.to(offsets.dtype).contiguous()
    n_rows, n_segments = score.shape[0], keep.shape[0]
    lengths = offsets.diff()
    clamped = keep.clamp(min=0).minimum(lengths)
    if total is None:
        total = _checked_total(keep, clamped)
    ends = torch.nn.functional.pad(clamped.cumsum(0, dtype=offsets.dtype), [1, 0]).clamp(max=total)
    if index is None:
        index = torch.empty(total, dtype=torch.int64, device=score.device)
    index.fill_(-1)
    if n_segments > 0 and total > 0:
        block, num_warps = launch_config(n_rows, n_segments)
        ragged_topk_kernel[(n_segments,)](
            index, score, offsets, ends, n_rows, total, BITS=64 if score.dtype == torch.float64 else 32, BLOCK=block,
            num_warps=num_warps,
        )  # fmt: skip
    return index, ends


def _checked_total(keep: Tensor, clamped: Tensor) -> int:
    """The sum of keep, in one transfer together with whether it may be used."""
    if keep.shape[0] == 0:
        return 0
    difference = (keep - clamped).abs()
    total, worst = torch.stack([clamped.sum(), difference.max()]).tolist()
    if worst:
        b = int(difference.argmax())
        raise ValueError(f"keep must be between 0 and the length of its segment, got {int(keep[b])} at segment {b}")
    return total


def launch_config(n_rows: int, n_segments: int) -> tuple[int, int]:
    """(rows of a step, warps): a segment of the mean length takes one step."""
    block = min(max(triton.next_power_of_2(-(-n_rows // max(n_segments, 1))), 128), 4096)
    return block, max(1, min(block // 256, 8))


@triton.jit
def _rank(score_ptr, rows, inside, BITS: tl.constexpr):
    """Unsigned integers in the order of the scores, -0 as 0; 0 for NaN and outside, which no number has."""
    KEY: tl.constexpr = tl.uint64 if BITS == 64 else tl.uint32
    value = tl.load(score_ptr + rows, mask=inside, other=0).to(tl.float64 if BITS == 64 else tl.float32)
    number = inside & (value == value)
    bits = tl.where(value == 0, 0, value).to(KEY, bitcast=True)
    top = tl.full((), 1 << (BITS - 1), KEY)
    # The bits of a negative number fall as it rises.
    key = tl.where(bits >= top, bits ^ (top | (top - 1)), bits | top)
    return tl.where(number, key, tl.full((), 0, KEY))


@triton.jit
def ragged_topk_kernel(
    index_ptr, score_ptr, offsets_ptr, ends_ptr, n_rows, total, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    KEY: tl.constexpr = tl.uint64 if BITS == 64 else tl.uint32
    segment = tl.program_id(0).to(tl.int64)
    first = tl.maximum(tl.load(offsets_ptr + segment).to(tl.int64), 0)
    last = tl.minimum(tl.load(offsets_ptr + segment + 1).to(tl.int64), n_rows)
    place = tl.load(ends_ptr + segment).to(tl.int64)
    stop = tl.minimum(tl.load(ends_ptr + segment + 1).to(tl.int64), total)
    wanted = (stop - place).to(tl.int32)
    length = (last - first).to(tl.int32)
    # The largest threshold that `wanted` keys reach, from its highest bit down.
    threshold = tl.full((), 0, KEY)
    bit = tl.full((), 1 << (BITS - 1), KEY)
    for _ in range(0, BITS):
        candidate = threshold | bit
        count = tl.full((), 0, tl.int32)
        for start in range(0, length, BLOCK):
            rows = first + start + tl.arange(0, BLOCK)
            key = _rank(score_ptr, rows, rows < last, BITS)
            count += tl.sum((key >= candidate).to(tl.int32), 0)
        threshold = tl.where(count >= wanted, candidate, threshold)
        bit = bit >> 1
    above = tl.full((), 0, tl.int32)
    for start in range(0, length, BLOCK):
        rows = first + start + tl.arange(0, BLOCK)
        above += tl.sum((_rank(score_ptr, rows, rows < last, BITS) > threshold).to(tl.int32), 0)
    ties = wanted - above
    for start in range(0, length, BLOCK):
        rows = first + start + tl.arange(0, BLOCK)
        inside = rows < last
        key = _rank(score_ptr, rows, inside, BITS)
        tie = ((key == threshold) & inside).to(tl.int32)
        before = tl.cumsum(tie, 0) - tie
        taken = ((key > threshold) | ((tie > 0) & (before < ties))).to(tl.int32)
        out = place + tl.cumsum(taken, 0) - taken
        tl.store(index_ptr + out, rows, mask=(taken > 0) & (out < stop))
        place += tl.sum(taken, 0)
        ties -= tl.sum(tie, 0)
