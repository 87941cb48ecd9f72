"""Batch norm as part of the layer before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def fold_scale(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that computes `norm(layer(x))`, in fp64.

    Args:
        weight: [Cout, ...] of a layer that is linear in each output channel.
        mean, var, eps: the norm's running statistics [Cout].
        scale, shift: the norm's own weight and bias [Cout], None where it has none.
    """
    factor = (var.detach().double() + eps).rsqrt()
    if scale is not None:
        factor = factor * scale.detach().double()
    folded = -mean.detach().double() * factor
    if bias is not None:
        folded = folded + bias.detach().double() * factor
    if shift is not None:
        folded = folded + shift.detach().double()
    return weight.detach().double() * factor.view(-1, *[1] * (weight.ndim - 1)), folded


def fold_batch_norm(layer: Any, norm: Any) -> None:
    """Make `layer` compute `norm(layer(x))`, with the norm's running statistics.

    Args:
        layer: its `weight` is [Cout, ...]; one that keeps it otherwise gives and takes it as `output_first_weight`.
    """
    ordered = hasattr(layer, "output_first_weight")
    weight, bias = fold_scale(
        layer.output_first_weight if ordered else layer.weight,
        layer.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    dtype = layer.weight.dtype
    if ordered:
        layer.output_first_weight = weight.to(dtype)
        layer.weight.requires_grad_(False)
    else:
        layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
