"""Functions on sparse tensors and on the rows of a kernel map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common_kernels import KernelMap
from common_kernels.gather_rows import gather_rows
from common_kernels.segment_reduce import segment_reduce
from pointcloud.tensor import SparseConvTensor


def sparse_add(*tensors: SparseConvTensor) -> SparseConvTensor:
    """Sum over the union of the coordinates.

    The result has the rows, maps and keys of the first of the largest operands when that one contains all others;
    otherwise its rows stand in order of first occurrence, beginning with the largest operand, and it has no keys.

    Raises:
        TypeError: an operand that is no SparseConvTensor.
        ValueError: no tensor, or tensors of different grid, batch size, channels or device.
    """
    if not tensors:
        raise ValueError("sparse_add needs at least one tensor, got none")
    first = tensors[0]
    for x in tensors:
        if not isinstance(x, SparseConvTensor):
            raise TypeError(f"sparse_add takes SparseConvTensors, got {type(x).__name__}")
        if (x.spatial_shape, x.batch_size, x.features.shape[1], x.features.device) != (
            first.spatial_shape,
            first.batch_size,
            first.features.shape[1],
            first.features.device,
        ):
            raise ValueError(
                f"sparse_add takes tensors of one grid, batch size, channel count and device, got {first} and {x}"
            )
        x.coordinates.check()
    # By position: the same object may be given more than once, and each time counts.
    position = max(range(len(tensors)), key=lambda i: len(tensors[i].coordinates))  # the first of equals
    largest = tensors[position]
    if all(largest.coordinates.same_as(x.coordinates) for x in tensors):
        return largest.replace_feature(_total([x.features for x in tensors]))
    ordered = [largest, *tensors[:position], *tensors[position + 1 :]]
    merged = SparseConvTensor(
        torch.cat([x.features for x in ordered]),
        torch.cat([x.indices for x in ordered]),
        first.spatial_shape,
        first.batch_size,
    ).coalesce("sum")
    if len(merged.coordinates) == len(largest.coordinates):
        return largest.replace_feature(merged.features)
    return merged


def _total(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def depthwise(x: Tensor, map: KernelMap, weight: Tensor) -> Tensor:
    """`out[m] = sum over taps k of x[map.table[k, m]] * weight[k]`, channel by channel; a tap of -1 adds nothing.

    Accumulated in at least fp32, without atomics. Differentiable in x and weight.

    Args:
        x: [N, C], N = map.n_in.
        weight: [K, C], or [K, 1] for a factor per tap.

    Returns:
        [M, C] in the dtype of x.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    transposed = map.backward_tables[0] if needs_grad else map.table
    return _Depthwise.apply(x.to(wide), weight.to(wide), map.table, transposed, map.symmetric).to(x.dtype)


class _Depthwise(torch.autograd.Function):
    """The depthwise sum. Its gradients are sums of the same form, built of `_Depthwise` and `_tap_products` again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, table: Tensor, transposed: Tensor, mirrored: bool) -> Tensor:
        ctx.save_for_backward(x, weight, table, transposed)
        ctx.mirrored = mirrored
        out = x.new_zeros(table.shape[1], x.shape[1])
        for rows, factor in zip(table, weight):
            target = (rows >= 0).nonzero().squeeze(1)
            out[target] += x[rows[target].long()] * factor
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight, table, transposed = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(0) if ctx.mirrored else weight
            grad_x = _Depthwise.apply(grad, turned, transposed, table, ctx.mirrored)
        if ctx.needs_input_grad[1]:
            # segment_reduce rather than sum, whose order of addition depends on the number of threads.
            whole = torch.tensor([0, len(grad)], device=grad.device)
            products = torch.cat([segment_reduce(gather_rows(x, rows) * grad, whole) for rows in table])
            grad_weight = products.sum(1, keepdim=True) if weight.shape[1] == 1 else products
        return grad_x, grad_weight, None, None, None


def window_mean(x: Tensor, map: KernelMap) -> Tensor:
    """[M, C]: mean of the input rows that each output row's taps find; 0 where they find none."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = depthwise(x.to(wide), map, x.new_ones(map.n_taps, 1, dtype=wide))
    count = (map.table >= 0).sum(0).clamp(min=1)
    return (total / count[:, None]).to(x.dtype)


def window_max(x: Tensor, map: KernelMap) -> Tensor:
    """[M, C]: maximum of the input rows that each output row's taps find; -inf where they find none.

    A NaN in the window gives NaN. The gradient goes to the first tap that holds the maximum.
    """
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    transposed = map.backward_tables[0] if needs_grad else map.table
    return _WindowMax.apply(x, map.table, transposed, map.symmetric)


class _WindowMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, transposed: Tensor, mirrored: bool) -> Tensor:
        out = x.new_full((table.shape[1], x.shape[1]), -torch.inf)
        winner = torch.full(out.shape, -1, dtype=torch.int32, device=x.device)
        for tap, rows in enumerate(table):
            target = (rows >= 0).nonzero().squeeze(1)
            value, best, best_tap = x[rows[target].long()], out[target], winner[target]
            better = (value > best) | (best_tap < 0) | (value.isnan() & ~best.isnan())
            out[target] = torch.where(better, value, best)
            winner[target] = torch.where(better, tap, best_tap)
        ctx.save_for_backward(winner, transposed)
        ctx.mirrored = mirrored
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        winner, transposed = ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, torch.float32)
        out = grad.new_zeros(transposed.shape[1], grad.shape[1], dtype=wide)
        # A mirrored table lists the taps of the transposed map in reverse.
        taps = reversed(range(len(transposed))) if ctx.mirrored else range(len(transposed))
        for tap, rows in zip(taps, transposed):
            target = (rows >= 0).nonzero().squeeze(1)
            source = rows[target].long()
            out[target] += torch.where(winner[source] == tap, grad[source].to(wide), 0)
        return out.to(grad.dtype), None, None, None


def pool_samples(x: SparseConvTensor, reduce: str) -> Tensor:
    """[batch_size, C]: "sum", "mean" or "max" over the rows of each sample; zeros for an empty sample.

    Raises ValueError for a batch index outside of the batch.
    """
    return _over_samples(x, x.features, reduce)


def sum_samples(x: SparseConvTensor, values: Tensor) -> Tensor:
    """[batch_size, C]: values [N, C], one row for each row of x, summed over the rows of each sample."""
    return _over_samples(x, values, "sum")


def _over_samples(x: SparseConvTensor, values: Tensor, reduce: str) -> Tensor:
    x.coordinates.check()
    order = torch.argsort(x.indices[:, 0], stable=True)
    ends = torch.bincount(x.indices[:, 0], minlength=x.batch_size).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    out = segment_reduce(gather_rows(values, order), offsets, reduce)
    empty = (offsets[1:] == offsets[:-1])[:, None]
    return out.masked_fill(empty, 0)
