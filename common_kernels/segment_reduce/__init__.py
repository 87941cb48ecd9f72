"""Reduction of consecutive rows: voxel means, pooling, merging of tokens."""

import torch
from torch import Tensor

from common_kernels.checks import check_device, check_index, check_rows, wide
from common_kernels.gather_rows import gather_rows
from common_kernels.operators import operator
from common_kernels.segment_reduce import reference

REDUCTIONS = ("sum", "mean", "max")


def segment_reduce(src: Tensor, offsets: Tensor, reduce: str = "sum") -> Tensor:
    """`out[s]` = the sum, mean or maximum of `src[offsets[s] : offsets[s + 1]]`.

    An empty segment gives 0 for sum and mean, -inf for max. A NaN in a segment gives NaN. fp16 and bf16 are accumulated
    in fp32. Repeated runs, and runs on any number of threads, are equal bit for bit. Differentiable in src; the
    gradient of a maximum goes to its first row.

    Args:
        src: [M, ...] fp32, fp64, fp16 or bf16.
        offsets: [S + 1] int32 or int64, rising from 0 to M.
        reduce: "sum", "mean" or "max".

    Returns:
        [S, ...] in the dtype of src.

    Raises:
        ValueError: wrong dtype, shape or device of an argument, an unknown reduction; on the CPU also offsets that do
            not rise from 0 to M. On a GPU, where checking would cost a synchronisation, nothing outside of src is read.
    """
    return torch.ops.trisparse.segment_reduce(src, offsets, reduce)


@operator("segment_reduce")
def _segment_reduce(src: Tensor, offsets: Tensor, reduce: str) -> Tensor:
    return reference.segment_reduce(src, offsets, reduce)


@_segment_reduce.register_check
def _(src: Tensor, offsets: Tensor, reduce: str) -> None:
    check_rows("src", src, floats_only=True)
    check_index("offsets", offsets, "S + 1")
    check_device("offsets", offsets, "src", src)
    if offsets.shape[0] == 0:
        raise ValueError("offsets must hold one number more than there are segments, got none")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")


@_segment_reduce.register_kernel("cpu")
def _(src: Tensor, offsets: Tensor, reduce: str) -> Tensor:
    from common_kernels.segment_reduce import cpu

    return cpu.segment_reduce(src, offsets, reduce)


@_segment_reduce.register_kernel("cuda")
def _(src: Tensor, offsets: Tensor, reduce: str) -> Tensor:
    from common_kernels.segment_reduce import gpu

    return gpu.segment_reduce(src, offsets, reduce)


@_segment_reduce.register_fake
def _(src, offsets, reduce):  # type: ignore[no-untyped-def]
    return src.new_empty(offsets.shape[0] - 1, *src.shape[1:])


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    src, offsets, ctx.reduce = inputs
    ctx.n_rows = src.shape[0]
    ctx.save_for_backward(offsets, *((src, output) if ctx.reduce == "max" else ()))


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    offsets, *saved = ctx.saved_tensors
    counts = offsets.diff()
    segment = torch.repeat_interleave(counts, output_size=ctx.n_rows)
    if ctx.reduce == "mean":
        # In at least fp32: fp16 cannot hold the number of rows of a long segment.
        divisor = counts.clamp(min=1).to(wide(grad.dtype)).view(-1, *[1] * (grad.ndim - 1))
        grad = (grad / divisor).to(grad.dtype)
    grad_src = gather_rows(grad, segment)
    if ctx.reduce == "max":
        src, out = saved
        grad_src = torch.where(_first_maximum(src, gather_rows(out, segment), offsets), grad_src, 0)
    return grad_src, None, None


def _first_maximum(src: Tensor, maximum: Tensor, offsets: Tensor) -> Tensor:
    """Whether each element is the first of its segment to equal the segment's maximum, [M, ...] bool."""
    equal = (src == maximum) | src.isnan()
    # How many equal ones there are up to each row, and up to the begin of its segment.
    so_far = torch.nn.functional.pad(equal.cumsum(0, dtype=torch.int32), [0, 0] * (src.ndim - 1) + [1, 0])
    before = torch.repeat_interleave(so_far[offsets[:-1]], offsets.diff(), 0, output_size=src.shape[0])
    return equal & (so_far[1:] == before + 1)


_segment_reduce.register_autograd(_backward, setup_context=_setup)
