"""The library's convolution of whole images, with residual sum and activation in its last step where it has them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common_kernels import onednn
from common_kernels.conv_update.reference import ACTIVATIONS
from common_kernels.windows import Window


class LibraryConvolution:
    """`act(conv(x) + bias + residual)` of x [B, Cin, H, W] in any layout; [B, Cout, Ho, Wo].

    On a CPU oneDNN runs it on weights brought into its own order once, for the size that comes first; elsewhere, and in
    other dtypes, torch. Inference only. The weights are its own: whoever makes one keeps no other hold of them.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int, activation: str) -> None:
        self.weight = weight
        self.bias = None if bias is None else bias.to(weight.dtype)
        self.activation = activation
        self._window = (list(window.padding), list(window.stride), list(window.dilation))
        self._groups = groups
        self._packed: onednn.PackedWeight[Tensor] = onednn.PackedWeight()
        self._packs = weight.device.type == "cpu" and onednn.has_convolution(weight.dtype, activation)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self._packs:
            padding, stride, dilation = self._window
            weight = self.weight.contiguous(memory_format=torch.channels_last)
            out = F.conv2d(x, weight, self.bias, stride, padding, dilation, self._groups)
            if residual is not None:
                out.add_(residual)
            return ACTIVATIONS[self.activation](out)
        x = x.contiguous(memory_format=torch.channels_last)
        packed = self._packed.last
        if packed is None:
            packed = self._packed.get(self.weight, lambda weight: self._pack(weight, x))
        if residual is None:
            return onednn.convolution(x, packed, self.bias, *self._window, self._groups, self.activation)
        if self._groups > 1:  # torch sums after a grouped convolution by itself, and not in bf16
            sums = onednn.convolution(x, packed, self.bias, *self._window, self._groups)
            return ACTIVATIONS[self.activation](sums.add_(residual))
        residual = residual.contiguous(memory_format=torch.channels_last)
        last = "relu" if self.activation == "relu" else "none"  # the only one that oneDNN computes after a sum
        sums = onednn.convolution_add(x, residual, packed, self.bias, *self._window, last)
        return sums if last == self.activation else ACTIVATIONS[self.activation](sums)

    def _pack(self, weight: Tensor, x: Tensor) -> Tensor:
        return onednn.pack_convolution(weight, *self._window, self._groups, list(x.shape))
