"""Rows of a tensor picked by an index, and its transpose, rows summed by an index."""

import torch
from torch import Tensor

from common_kernels.checks import check_device, check_index, check_rows, describe, rows_of
from common_kernels.gather_rows import reference
from common_kernels.operators import operator


def gather_rows(src: Tensor, index: Tensor) -> Tensor:
    """`out[m] = src[index[m]]`; an index of -1 gives zeros.

    Differentiable in src, with a deterministic backward: `scatter_add_rows`.

    Args:
        src: [N, ...], any dtype.
        index: [M] int32 or int64, each -1 or below N.

    Returns:
        [M, ...] in the dtype of src.

    Raises:
        ValueError: wrong dtype, shape or device of an argument.
        IndexError: an index below -1 or not below N, on the CPU. On a GPU, where checking would cost a synchronisation,
            such an index gives zeros; nothing outside of src is read.
    """
    return torch.ops.trisparse.gather_rows(src, index)


def scatter_add_rows(src: Tensor, index: Tensor, n_rows: int) -> Tensor:
    """`out[index[m]] += src[m]` on zeros; an index of -1 adds nothing.

    The terms of an output row are added in ascending m, in fp32 for fp16 and bf16, without atomics: repeated runs, and
    runs on any number of threads, are equal bit for bit. Differentiable in src; the backward is `gather_rows`.

    Args:
        src: [M, ...] fp32, fp64, fp16 or bf16.
        index: [M] int32 or int64, each -1 or below n_rows.
        n_rows: number of output rows.

    Returns:
        [n_rows, ...] in the dtype of src.

    Raises:
        ValueError: wrong dtype, shape or device of an argument, or a negative n_rows.
        IndexError: an index below -1 or not below n_rows, on the CPU. On a GPU such a row is skipped.
    """
    if n_rows < 0:
        raise ValueError(f"n_rows must not be negative, got {n_rows}")
    return torch.ops.trisparse.scatter_add_rows(src, index, rows_of(src, n_rows))


@operator("gather_rows")
def _gather_rows(src: Tensor, index: Tensor) -> Tensor:
    return reference.gather_rows(src, index)


@_gather_rows.register_check
def _(src: Tensor, index: Tensor) -> None:
    check_rows("src", src)
    check_index("index", index, "M")
    check_device("index", index, "src", src)


@_gather_rows.register_kernel("cpu")
def _(src: Tensor, index: Tensor) -> Tensor:
    from common_kernels.gather_rows import cpu

    return cpu.gather_rows(src, index)


@_gather_rows.register_kernel("cuda")
def _(src: Tensor, index: Tensor) -> Tensor:
    from common_kernels.gather_rows import gpu

    return gpu.gather_rows(src, index)


@_gather_rows.register_fake
def _(src, index):  # type: ignore[no-untyped-def]
    return src.new_empty(index.shape[0], *src.shape[1:])


@operator("scatter_add_rows")
def _scatter_add_rows(src: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    return reference.scatter_add_rows(src, index, rows.shape[0])


@_scatter_add_rows.register_check
def _(src: Tensor, index: Tensor, rows: Tensor) -> None:
    check_rows("rows", rows)
    check_rows("src", src, floats_only=True)
    check_index("index", index, "M")
    check_device("index", index, "src", src)
    if index.shape[0] != src.shape[0]:
        raise ValueError(f"index must have one entry for each of the {src.shape[0]} rows, got {describe(index)}")


@_scatter_add_rows.register_kernel("cpu")
def _(src: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    from common_kernels.gather_rows import cpu

    return cpu.scatter_add_rows(src, index, rows.shape[0])


@_scatter_add_rows.register_kernel("cuda")
def _(src: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    from common_kernels.gather_rows import gpu

    return gpu.scatter_add_rows(src, index, rows.shape[0])


@_scatter_add_rows.register_fake
def _(src, index, rows):  # type: ignore[no-untyped-def]
    return src.new_empty(rows.shape[0], *src.shape[1:])


def _setup_gather(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    src, index = inputs
    ctx.n_rows = src.shape[0]
    ctx.save_for_backward(index)


def _backward_gather(ctx, grad):  # type: ignore[no-untyped-def]
    (index,) = ctx.saved_tensors
    return torch.ops.trisparse.scatter_add_rows(grad, index, rows_of(grad, ctx.n_rows)), None


def _setup_scatter(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[1])


def _backward_scatter(ctx, grad):  # type: ignore[no-untyped-def]
    (index,) = ctx.saved_tensors
    return torch.ops.trisparse.gather_rows(grad, index), None, None


_gather_rows.register_autograd(_backward_gather, setup_context=_setup_gather)
_scatter_add_rows.register_autograd(_backward_scatter, setup_context=_setup_scatter)
