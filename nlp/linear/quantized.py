"""Linear layers with int8 weights and one scale per output channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common_kernels import onednn
from nlp.linear.packed import ACTIVATIONS

# Measured on one core: torch's own int8 kernel beats everything else for a few rows in bfloat16, and is not vectorised
# in float32 (35 times slower than F.linear there).
_MAX_KERNEL_ROWS = 8
# From this many rows on, it pays to lay the weights out for oneDNN after they have been turned into numbers again.
_MIN_REORDERED_ROWS = {torch.float32: 128, torch.bfloat16: 1024}


class QuantizedLinear(nn.Module):
    """A linear layer that holds int8 weights: x [..., in] -> activation(x @ (weight * scale).T + bias) [..., out].

    `weight` int8 [out, in] and `scale` float32 [out] are buffers, `bias` is the Parameter of the original layer. The
    scales are numbers that bfloat16 holds exactly, so that both dtypes multiply by the same weights. Gradients reach
    the input and the bias, not the weights.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None, activation: str = "none") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        values, scale = quantize_rows(weight)
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """act(x @ (weight * scale).T + bias) for x [..., in]: [..., out]."""
        meaning = ACTIVATIONS[self.activation]
        rows = x.reshape(-1, x.shape[-1])
        plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or not x.is_cpu
        if torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            plain = True
        n = rows.shape[0]
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if plain or n == 0:
            return meaning(F.linear(x, self._dequantized(x.dtype), bias))
        if n >= _MIN_REORDERED_ROWS.get(x.dtype, n + 1) and onednn.has_linear(x.dtype, self.activation):
            packed = onednn.pack_linear(self._dequantized(x.dtype), n)
            return onednn.linear(x, packed, bias, self.activation)
        if x.dtype == torch.bfloat16 and n <= _MAX_KERNEL_ROWS and hasattr(torch, "_weight_int8pack_mm"):
            out = torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale.to(x.dtype))
        else:
            # Whole numbers up to 127 are exact in every dtype, and few outputs are cheaper to scale than all weights.
            out = (F.linear(rows, self.weight.to(x.dtype)) * self.scale).to(x.dtype)
        return meaning((out if bias is None else out + bias).view(*x.shape[:-1], self.out_features))

    def _dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        return self.weight.to(dtype) * self.scale.to(dtype)[:, None]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:  # .half() and the like mean the activations
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return text if self.activation == "none" else f"{text}, activation={self.activation}"


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 values [out, in] and float32 scales [out] of a weight [out, in]; values * scales ~ weight.

    Raises ValueError for weights that are not finite.
    """
    exact = weight.detach().float()
    largest = exact.abs().amax(1) if exact.shape[1] else exact.new_zeros(exact.shape[0])
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("weight must be finite, got inf or nan")
    scale = largest / 127
    # The next number with eight significant bits, never smaller: 127 steps still reach the largest weight.
    fraction, exponent = torch.frexp(scale)
    scale = torch.ldexp(torch.ceil(fraction * 256), exponent - 8)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = (exact / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return values, scale
