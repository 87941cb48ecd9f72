"""A matrix product of rows whose channel groups are read from other rows, without the shifted copy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common_kernels.channel_shift import check_groups
from common_kernels.checks import FLOATS, check_device, check_fixed, describe, dtype_name, wide
from common_kernels.operators import operator
from common_kernels.shift_gemm import reference

ACTIVATIONS = ("none", "relu", "relu6")


def shift_gemm(
    x: Tensor,
    length: int,
    groups: Sequence[tuple[int, int]],
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`act(channel_shift(x, length, groups) @ weight + bias + residual)`, each product reading its own row of x.

    Products are accumulated in fp32 (fp64 for fp64) and rounded once. Differentiable in x, weight, bias and residual.

    Args:
        x: [R, C] fp32, fp64, fp16 or bf16, R a multiple of length.
        groups: (channels, offset in rows) of consecutive groups, as in `channel_shift`.
        weight: [C, O], the dtype of x, any strides.
        bias: [O].
        residual: [R, O], added before the activation.
        activation: "none", "relu" or "relu6".

    Returns:
        [R, O] in the dtype of x.
    """
    channels, offsets = [n for n, _ in groups], [offset for _, offset in groups]
    check_fixed("length and groups", length, *channels, *offsets)
    return torch.ops.trisparse.shift_gemm(x, length, channels, offsets, weight, bias, residual, activation)


def fused_pays(
    channels: int, out: int, hw: int, dtype: torch.dtype, device: torch.device, packed: bool = False
) -> bool:
    """Whether `shift_gemm` is faster than `channel_shift` and the library's 1×1 convolution of channels-last frames.

    Measured on an AVX-512 CPU with one thread and 8 frames, on the shifted layers of ResNet-50 and MobileNetV2
    (benchmarks/video/shift.py). In fp32 it took 0.44 to 0.65 of the time, but twice the time where a wide result of
    few channels passes through memory. Against packed weights it won by 5 to 30 % where 64 to 512 channels become
    fewer. In bf16 the library won. On GPUs and other CPUs nothing is measured and the answer is no.

    Args:
        hw: pixels of a frame.
        packed: whether the convolution's weights lie in the library's own order.
    """
    if device.type != "cpu" or dtype != torch.float32 or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if packed:
        return 64 <= channels <= 512 and out <= channels and hw >= 256
    return channels >= 32 and (out <= 4 * channels or hw <= 1024)


@operator("shift_gemm")
def _shift_gemm(
    x: Tensor,
    length: int,
    channels: Sequence[int],
    offsets: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    return reference.shift_gemm(x, length, channels, offsets, weight, bias, residual, activation)


@_shift_gemm.register_check
def _(
    x: Tensor,
    length: int,
    channels: Sequence[int],
    offsets: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> None:
    check_groups(x, length, channels, offsets)
    if x.ndim != 2 or x.dtype not in FLOATS:
        raise ValueError(f"x must be fp32, fp64, fp16 or bf16 [R, C], got {describe(x)}")
    if weight.ndim != 2 or weight.shape[0] != x.shape[1] or weight.dtype != x.dtype:
        raise ValueError(f"weight must be {dtype_name(x)} [{x.shape[1]}, O], got {describe(weight)}")
    shapes = {"bias": (bias, (weight.shape[1],)), "residual": (residual, (x.shape[0], weight.shape[1]))}
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and (tensor.shape != shape or tensor.dtype != x.dtype):
            raise ValueError(f"{name} must be {dtype_name(x)} {list(shape)}, got {describe(tensor)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    for name, tensor in (("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is not None:
            check_device(name, tensor, "x", x)


@_shift_gemm.register_kernel("cpu")
def _(x, length, channels, offsets, weight, bias, residual, activation):  # type: ignore[no-untyped-def]
    from common_kernels.shift_gemm import cpu

    return cpu.shift_gemm(x, length, channels, offsets, weight, bias, residual, activation)


@_shift_gemm.register_kernel("cuda")
def _(x, length, channels, offsets, weight, bias, residual, activation):  # type: ignore[no-untyped-def]
    from common_kernels.shift_gemm import gpu

    return gpu.shift_gemm(x, length, channels, offsets, weight, bias, residual, activation)


@_shift_gemm.register_fake
def _(x, length, channels, offsets, weight, bias, residual, activation):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[1])


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, ctx.length, ctx.channels, ctx.offsets, weight, bias, residual, ctx.activation = inputs
    ctx.save_for_backward(x, weight, output if ctx.activation != "none" else None)
    ctx.needs = (bias is not None, residual is not None)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, out = ctx.saved_tensors
    if out is not None:
        grad = grad * ((out > 0) & (out < 6) if ctx.activation == "relu6" else out > 0)
    grad_x = grad_weight = None
    shift = torch.ops.trisparse.channel_shift
    if ctx.needs_input_grad[0]:
        back = [-offset for offset in ctx.offsets]
        grad_x = shift((grad @ weight.t()).contiguous(), ctx.length, ctx.channels, back)
    if ctx.needs_input_grad[4]:
        grad_weight = shift(x, ctx.length, ctx.channels, ctx.offsets).t() @ grad
    grad_bias = grad.sum(0, dtype=wide(grad.dtype)).to(grad.dtype) if ctx.needs[0] else None
    return grad_x, None, None, None, grad_weight, grad_bias, grad if ctx.needs[1] else None, None


_shift_gemm.register_autograd(_backward, setup_context=_setup)
