"""Gather some input rows for each output row, multiply by a weight per tap, sum: the act behind every sparse layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common_kernels.checks import check_device, describe, dtype_name
from common_kernels.gather_gemm import reference
from common_kernels.kernel_map import KernelMap, check_table
from common_kernels.operators import operator

ACTIVATIONS = ("none", "relu")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def gather_gemm(
    x: Tensor,
    map: KernelMap,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`out[m] = act(sum over taps k of x[map.table[k, m]] @ weight[k] + bias + residual[m])`; a tap of -1 adds none.

    Products are accumulated in fp32 (fp64 for fp64 input) and each output row is written once, in a fixed order of
    summation: repeated runs are equal bit for bit. Differentiable in x, weight, bias and residual.

    Args:
        x: [N, Cin] fp32, fp64, fp16 or bf16, N = map.n_in.
        weight: [K, Cin, Cout], the dtype of x.
        bias: [Cout].
        residual: [M, Cout], added before the activation.
        activation: "none" or "relu".

    Returns:
        [M, Cout] in the dtype of x.

    Raises:
        ValueError: wrong dtype, shape or device of an argument, a table that names a row which x does not have. On a
            GPU, where looking at the table would cost a synchronisation, such a row counts as zeros.
    """
    _check_rows(x, map)
    backward: tuple[Tensor | None, list[Tensor], bool] = (None, [], False)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        backward = map.backward_tables
    return torch.ops.trisparse.gather_gemm(x, weight, bias, residual, activation, map.table, map.schedule, *backward)


def _check_rows(x: Tensor, map: KernelMap) -> None:
    if x.ndim == 2 and x.shape[0] != map.n_in:
        raise ValueError(f"x must have the map's {map.n_in} input rows, got {describe(x)}")


def _check_table(x: Tensor, table: Tensor) -> None:
    if x.ndim != 2 or x.dtype not in DTYPES:
        raise ValueError(f"x must be fp32, fp64, fp16 or bf16 [N, Cin], got {describe(x)}")
    check_table(table)
    check_device("map", table, "x", x)


@operator("gather_gemm")
def _gather_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    table: Tensor,
    schedule: Sequence[Tensor],
    transposed: Tensor | None,
    transposed_schedule: Sequence[Tensor],
    mirrored: bool,
) -> Tensor:
    return reference.gather_gemm(x, table, weight, bias, residual, activation)


@_gather_gemm.register_check
def _(x, weight, bias, residual, activation, table, schedule, *_):
    _check_table(x, table)
    n_taps, n_rows = table.shape
    if weight.ndim != 3 or weight.shape[:2] != (n_taps, x.shape[1]) or weight.dtype != x.dtype:
        raise ValueError(
            f"weight must be {dtype_name(x)} [K, Cin, Cout] = [{n_taps}, {x.shape[1]}, Cout], got {describe(weight)}"
        )
    n_out = weight.shape[2]
    if bias is not None and (bias.shape != (n_out,) or bias.dtype != x.dtype):
        raise ValueError(f"bias must be {dtype_name(x)} [{n_out}], got {describe(bias)}")
    if residual is not None and (residual.shape != (n_rows, n_out) or residual.dtype != x.dtype):
        raise ValueError(f"residual must be {dtype_name(x)} [{n_rows}, {n_out}], got {describe(residual)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    for name, tensor in (("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is not None:
            check_device(name, tensor, "x", x)


@_gather_gemm.register_kernel("cpu")
def _(x, weight, bias, residual, activation, table, schedule, *_):
    from common_kernels.gather_gemm import cpu
    from common_kernels.kernel_map.cpu_schedule import check_schedule

    check_schedule(table, schedule, x.shape[0])
    return cpu.gather_gemm(x, weight, bias, residual, activation, table, schedule)


@_gather_gemm.register_kernel("cuda")
def _(x, weight, bias, residual, activation, table, schedule, *_):
    from common_kernels.gather_gemm import gpu
    from common_kernels.kernel_map.gpu_schedule import check_schedule

    check_schedule(table, schedule)
    return gpu.gather_gemm(x, weight, bias, residual, activation, table, schedule)


@_gather_gemm.register_fake
def _(x, weight, bias, residual, activation, table, *_):
    return x.new_empty(table.shape[1], weight.shape[2])


@operator("gather_gemm_weight_grad")
def _weight_grad(
    x: Tensor,
    grad: Tensor,
    table: Tensor,
    schedule: Sequence[Tensor],
    transposed: Tensor | None,
    transposed_schedule: Sequence[Tensor],
    mirrored: bool,
) -> Tensor:
    return reference.weight_grad(x, grad, table)


@_weight_grad.register_check
def _(x, grad, table, schedule, *_):
    _check_table(x, table)
    if grad.ndim != 2 or grad.shape[0] != table.shape[1] or grad.dtype != x.dtype:
        raise ValueError(f"grad must be {dtype_name(x)} [{table.shape[1]}, Cout], got {describe(grad)}")
    check_device("grad", grad, "x", x)


@_weight_grad.register_kernel("cpu")
def _(x, grad, table, schedule, *_):
    from common_kernels.gather_gemm import cpu_weight_grad
    from common_kernels.kernel_map.cpu_schedule import check_schedule

    check_schedule(table, schedule, x.shape[0])
    return cpu_weight_grad.weight_grad(x, grad, table, schedule)


@_weight_grad.register_kernel("cuda")
def _(x, grad, table, schedule, *_):
    from common_kernels.gather_gemm import gpu
    from common_kernels.kernel_map.gpu_schedule import check_schedule

    check_schedule(table, schedule)
    return gpu.weight_grad(x, grad, table, schedule)


@_weight_grad.register_fake
def _(x, grad, table, *_):
    return x.new_empty(table.shape[0], x.shape[1], grad.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


def _setup(ctx, inputs, output) -> None:
    x, weight, bias, residual, activation, table, schedule, transposed, transposed_schedule, mirrored = inputs
    # Each operand serves the other's gradient only: a frozen weight needs no input kept, a given input no weight.
    for_x, for_weight = ctx.needs_input_grad[:2]
    kept = (x if for_weight else None, weight if for_x else None, output if activation == "relu" else None)
    ctx.save_for_backward(*kept, table, transposed)
    ctx.weight_dtype = weight.dtype
    ctx.schedules, ctx.mirrored = (schedule, transposed_schedule), mirrored
    ctx.needs = (bias is not None, residual is not None)


def _backward(ctx, grad):
    x, weight, out, table, transposed = ctx.saved_tensors
    schedule, transposed_schedule = ctx.schedules
    if out is not None:
        grad = grad * (out > 0)
    grad = grad.contiguous()
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        turned = (weight.flip(0) if ctx.mirrored else weight).transpose(1, 2)
        grad_x = torch.ops.trisparse.gather_gemm(
            grad, turned, None, None, "none", transposed, transposed_schedule, table, schedule, ctx.mirrored
        )
    if ctx.needs_input_grad[1]:
        grad_weight = torch.ops.trisparse.gather_gemm_weight_grad(
            x, grad, table, schedule, transposed, transposed_schedule, ctx.mirrored
        ).to(ctx.weight_dtype)
    grad_bias = (
        grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(grad.dtype) if ctx.needs[0] else None
    )
    grad_residual = grad if ctx.needs[1] else None
    return grad_x, grad_weight, grad_bias, grad_residual, None, None, *_no_grads(ctx)


def _no_grads(ctx):
    """The gradients of (schedule, transposed, transposed_schedule, mirrored)."""
    schedule, transposed_schedule = ctx.schedules
    return [None] * len(schedule), None, [None] * len(transposed_schedule), None


def _setup_weight_grad(ctx, inputs, output) -> None:
    x, grad, table, schedule, transposed, transposed_schedule, mirrored = inputs
    ctx.save_for_backward(x, grad, table, transposed)
    ctx.schedules, ctx.mirrored = (schedule, transposed_schedule), mirrored


def _backward_weight_grad(ctx, upstream):
    """The weight gradient is bilinear in x and grad, so both of its gradients are gather-GEMMs with `upstream`."""
    x, grad, table, transposed = ctx.saved_tensors
    schedule, transposed_schedule = ctx.schedules
    upstream = upstream.to(x.dtype)
    turned = (upstream.flip(0) if ctx.mirrored else upstream).transpose(1, 2)
    tables = (table, schedule, transposed, transposed_schedule)
    grad_x = torch.ops.trisparse.gather_gemm(
        grad, turned, None, None, "none", tables[2], tables[3], tables[0], tables[1], ctx.mirrored
    )
    grad_grad = torch.ops.trisparse.gather_gemm(x, upstream, None, None, "none", *tables, ctx.mirrored)
    return grad_x, grad_grad, None, *_no_grads(ctx)


_gather_gemm.register_autograd(_backward, setup_context=_setup)
_weight_grad.register_autograd(_backward_weight_grad, setup_context=_setup_weight_grad)
