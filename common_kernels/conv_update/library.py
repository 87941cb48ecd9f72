"""The library's convolution of whole images, with residual sum and activation in its last step where it has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common_kernels.conv_update.reference import ACTIVATIONS
from common_kernels.windows import Window

# What oneDNN computes on every CPU.
_DTYPES = (torch.float32, torch.bfloat16)
# The activation's name in oneDNN, and its numbers.
_NAMES: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "hardswish": ("hardswish", []),
    "silu": ("swish", []),
}


class LibraryConvolution:
    """`act(conv(x) + bias + residual)` of x [B, Cin, H, W] in any layout; [B, Cout, Ho, Wo].

    On a CPU oneDNN runs it on weights brought into its own order once, for the size that comes first; elsewhere, and in
    other dtypes, torch. Inference only.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int, activation: str) -> None:
        self.weight = weight
        self.bias = None if bias is None else bias.to(weight.dtype)
        self.activation = activation
        self._shape: tuple[Any, ...] = (list(window.padding), list(window.stride), list(window.dilation), groups)
        self._packed: Tensor | None = None
        self._packs = (
            weight.device.type == "cpu"
            and weight.dtype in _DTYPES
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
            and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        )

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self._packs:
            padding, stride, dilation, groups = self._shape
            weight = self.weight.contiguous(memory_format=torch.channels_last)
            out = F.conv2d(x, weight, self.bias, stride, padding, dilation, groups)
            if residual is not None:
                out.add_(residual)
            return ACTIVATIONS[self.activation](out)
        x = x.contiguous(memory_format=torch.channels_last)
        name, numbers = _NAMES[self.activation]
        packed = self._packed
        if packed is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self._shape, list(x.shape))
            self._packed = packed
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise.default(
                x, packed, self.bias, *self._shape, name, numbers, ""
            )
        if self._shape[3] > 1:  # torch sums after a grouped convolution by itself, and not in bf16
            sums = torch.ops.mkldnn._convolution_pointwise.default(x, packed, self.bias, *self._shape, "none", [], "")
            return ACTIVATIONS[self.activation](sums.add_(residual))
        residual = residual.contiguous(memory_format=torch.channels_last)
        last = "relu" if self.activation == "relu" else None  # the only one that oneDNN computes after a sum
        sums = torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, packed, self.bias, *self._shape, "add", 1.0, last, [], ""
        )
        return sums if last else ACTIVATIONS[self.activation](sums)
