"""The best rows of each segment, in their own order: pruning of tokens, sampling of frames."""

import torch
from torch import Tensor

from common_kernels.checks import FLOATS, check_device, check_fixed, check_index, describe
from common_kernels.operators import operator
from common_kernels.ragged_topk import reference


def ragged_topk(score: Tensor, offsets: Tensor, keep: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """The rows with the `keep[b]` highest scores of each segment b, in ascending order.

    Of equal scores the earlier row is kept; -0 equals 0; NaN ranks last, below -inf. The same rows on every device. Not
    differentiable: an index has no gradient.

    On a GPU the number of kept rows is read back from the device, and with it whether `keep` is valid, unless the
    caller knows it: with `total` nothing waits for the device. A host that computes `keep` from lengths knows its sum.

    Args:
        score: [T] fp32, fp64, fp16 or bf16.
        offsets: [B + 1] int32 or int64, rising from 0 to T.
        keep: [B] int32 or int64, each between 0 and the length of its segment.
        total: the sum of `keep`.

    Returns:
        The kept rows, int64 [M], ascending, M the sum of `keep`; and where those of each segment begin,
        [B + 1] in the dtype of `offsets`.

    Raises:
        ValueError: wrong dtype, shape or device of an argument, a negative total; offsets that do not rise from 0 to T;
            a `keep` that is negative or larger than its segment; a total that is not the sum of `keep`. On a GPU with
            `total`, values are not checked: a `keep` out of range counts as the nearest one within, the last segments
            keep fewer rows where `total` is too small, and -1 fills the result up where it is too large.
    """
    check_fixed("total", *(() if total is None else (total,)))
    return torch.ops.trisparse.ragged_topk(score.detach(), offsets, keep, total)


@operator("ragged_topk")
def _ragged_topk(score: Tensor, offsets: Tensor, keep: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
    return reference.ragged_topk(score, offsets, keep)


@_ragged_topk.register_check
def _(score: Tensor, offsets: Tensor, keep: Tensor, total: int | None) -> None:
    if score.ndim != 1 or score.dtype not in FLOATS:
        raise ValueError(f"score must be fp32, fp64, fp16 or bf16 [T], got {describe(score)}")
    check_index("offsets", offsets, "B + 1")
    check_index("keep", keep, "B")
    check_device("offsets", offsets, "score", score)
    check_device("keep", keep, "score", score)
    if offsets.shape[0] != keep.shape[0] + 1:
        raise ValueError(
            f"offsets must hold one number more than keep has segments, got {describe(offsets)} and {describe(keep)}"
        )
    if total is not None and total < 0:
        raise ValueError(f"total must not be negative, got {total}")


@_ragged_topk.register_kernel("cpu")
def _(score: Tensor, offsets: Tensor, keep: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
    from common_kernels.ragged_topk import cpu

    return cpu.ragged_topk(score, offsets, keep, total)


@_ragged_topk.register_kernel("cuda")
def _(score: Tensor, offsets: Tensor, keep: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
    from common_kernels.ragged_topk import gpu

    return gpu.ragged_topk(score, offsets, keep, total)


@_ragged_topk.register_fake
def _(score, offsets, keep, total):  # type: ignore[no-untyped-def]
    size = torch.library.get_ctx().new_dynamic_size() if total is None else total
    return score.new_empty(size, dtype=torch.int64), torch.empty_like(offsets, memory_format=torch.contiguous_format)
