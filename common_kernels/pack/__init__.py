"""Padded batches to rows without padding, and back."""

import torch
from torch import Tensor
from torch.types import Number

from common_kernels.checks import check_device, check_index, check_rows, describe, dtype_name, rows_of
from common_kernels.compact import compact
from common_kernels.operators import operator


def pack(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The elements of a batch of sequences that a mask keeps, as rows one behind the other.

    Padding may lie anywhere: left, right or between. Differentiable in x; the backward is `unpack`. As `compact`, it
    waits for a GPU. Other tensors of the same batch: ``other.flatten(0, 1).index_select(0, index)``.

    Args:
        x: [B, S, ...], any dtype.
        mask: [B, S] bool or integer; what is not 0 is kept. B * S below 2**31.

    Returns:
        The rows kept, [T, ...], sequence by sequence; the place b * S + s of each in the batch, int64 [T], ascending;
        and where each sequence begins among the rows, int64 [B + 1].

    Raises:
        ValueError: wrong dtype, shape or device of an argument.
    """
    if x.ndim < 2:
        raise ValueError(f"x must be [B, S, ...], got {describe(x)}")
    if mask.shape != x.shape[:2] or mask.is_floating_point() or mask.is_complex():
        raise ValueError(f"mask must be bool or integer {list(x.shape[:2])} as x has [B, S], got {describe(mask)}")
    check_device("mask", mask, "x", x)
    kept = mask.to(torch.bool)
    index = compact(kept.flatten()).to(torch.int64)
    offsets = torch.nn.functional.pad(kept.sum(1).cumsum(0), [1, 0])
    return torch.ops.trisparse.pack_rows(x.flatten(0, 1), index), index, offsets


def unpack(rows: Tensor, index: Tensor, shape: tuple[int, int], fill: Number = 0) -> Tensor:
    """A batch [B, S, ...] with `rows[t]` at its place `index[t]` and `fill` everywhere else.

    Differentiable in rows; the backward is `pack`.

    Args:
        rows: [T, ...], any dtype.
        index: [T] int32 or int64, places b * S + s from `pack`, in any order, each at most once.
        shape: (B, S).
        fill: a number that the dtype of rows holds.

    Returns:
        [B, S, ...] in the dtype of rows.

    Raises:
        ValueError: wrong dtype, shape or device of an argument, a fill that the dtype does not hold; on the CPU also
            a place that comes twice. On a GPU one of the rows with that place is taken.
        IndexError: a place outside of the batch, on the CPU. On a GPU such a row is left out.
    """
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 0:
        raise ValueError(f"shape must be (B, S), got {tuple(shape)}")
    out = torch.ops.trisparse.unpack_rows(rows, index, rows_of(rows, shape[0] * shape[1]), fill)
    return out.view(shape[0], shape[1], *rows.shape[1:])


# Plain torch and `gather_rows` below: no kernels of their own for a CPU or a GPU.
@operator("pack_rows")
def _pack_rows(src: Tensor, index: Tensor) -> Tensor:
    return src.index_select(0, index)


@operator("unpack_rows")
def _unpack_rows(rows: Tensor, index: Tensor, places: Tensor, fill: Number) -> Tensor:
    source = _inverse(index, places.shape[0])
    # Gathered from the rows, not scattered to the batch: each element is written once, whether filled or not.
    out = torch.ops.trisparse.gather_rows(rows, source)
    if fill != 0:
        out.masked_fill_((source < 0).view(-1, *[1] * (rows.ndim - 1)), fill)
    return out


def _inverse(index: Tensor, n_rows: int) -> Tensor:
    """[n_rows] int64: which entry of index names each row, -1 for none."""
    index = index.to(torch.int64)
    outside = (index < 0) | (index >= n_rows)
    if index.device.type == "cpu":
        if bool(outside.any()):
            t = int(outside.nonzero()[0])
            raise IndexError(f"index must be at least 0 and below {n_rows}, got {int(index[t])} at position {t}")
    else:
        index = torch.where(outside, n_rows, index)
    source = index.new_full((n_rows + 1,), -1)
    source[index] = torch.arange(index.shape[0], device=index.device)
    source = source[:n_rows]
    if index.device.type == "cpu" and int((source >= 0).sum()) != index.shape[0]:
        ordered = index.sort()[0]
        twice = int(ordered[1:][ordered[1:] == ordered[:-1]][0])
        raise ValueError(f"index must name each place at most once, got {twice} twice")
    return source


@_pack_rows.register_fake
def _(src, index):  # type: ignore[no-untyped-def]
    return src.new_empty(index.shape[0], *src.shape[1:])


@_pack_rows.register_check
def _(src: Tensor, index: Tensor) -> None:
    check_rows("src", src)
    check_index("index", index, "T")
    check_device("index", index, "src", src)


@_unpack_rows.register_check
def _(rows: Tensor, index: Tensor, places: Tensor, fill: Number) -> None:
    check_rows("rows", rows)
    check_rows("places", places)
    check_index("index", index, "T")
    check_device("index", index, "rows", rows)
    if index.shape[0] != rows.shape[0]:
        raise ValueError(f"index must have one entry for each of the {rows.shape[0]} rows, got {describe(index)}")
    if not (rows.is_floating_point() or rows.is_complex()):
        low, high = (0, 1) if rows.dtype == torch.bool else (torch.iinfo(rows.dtype).min, torch.iinfo(rows.dtype).max)
        if not (isinstance(fill, int) and low <= fill <= high):
            raise ValueError(f"fill must be a number that {dtype_name(rows)} holds, got {fill!r}")


@_unpack_rows.register_fake
def _(rows, index, places, fill):  # type: ignore[no-untyped-def]
    return rows.new_empty(places.shape[0], *rows.shape[1:])


def _setup_pack(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    src, index = inputs
    ctx.n_rows = src.shape[0]
    ctx.save_for_backward(index)


def _backward_pack(ctx, grad):  # type: ignore[no-untyped-def]
    (index,) = ctx.saved_tensors
    return torch.ops.trisparse.unpack_rows(grad, index, rows_of(grad, ctx.n_rows), 0), None


def _setup_unpack(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[1])


def _backward_unpack(ctx, grad):  # type: ignore[no-untyped-def]
    (index,) = ctx.saved_tensors
    return torch.ops.trisparse.pack_rows(grad, index), None, None, None


_pack_rows.register_autograd(_backward_pack, setup_context=_setup_pack)
_unpack_rows.register_autograd(_backward_unpack, setup_context=_setup_unpack)
