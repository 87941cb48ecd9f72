"""A convolution for inference on the CPU: weights in the library's own order, the activation in its last step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common_kernels import onednn
from video.shift import exporting


class PackedConv2d(onednn.PackedModule, nn.Conv2d):
    """As nn.Conv2d, followed by an activation: "none", "relu", "relu6" or "hardswish".

    Without gradients, compilation or export, and on the CPU, oneDNN runs it on weights that are brought into its order
    once, at the first call, and again after they have changed (see `onednn.PackedWeight`); otherwise torch runs it as
    usual.
    """

    activation = "none"
    _packed: onednn.PackedWeight[Tensor]

    @classmethod
    def of(cls, conv: nn.Conv2d, activation: str = "none") -> PackedConv2d:
        """A convolution with the parameters of `conv`, which it shares."""
        packed = cls.__new__(cls)
        packed.__dict__ = {key: dict(value) if type(value) is dict else value for key, value in conv.__dict__.items()}
        packed.activation = activation
        packed._packed = onednn.PackedWeight()
        return packed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not self._library_serves(x, weight):
            return onednn.ACTIVATIONS[self.activation](super().forward(x))
        x = x.contiguous(memory_format=torch.channels_last)
        packed = self._packed.current(weight)
        if packed is None:
            packed = self._pack(x)
        window = self._window()
        return onednn.convolution(x, packed, self.bias, *window, self.groups, self.activation)

    def _window(self) -> tuple[Any, Any, Any]:
        return self.padding, self.stride, self.dilation

    def _pack(self, x: Tensor) -> Tensor:
        window = self._window()
        rows = x.shape[2] * x.shape[3] // (self.stride[0] * self.stride[1])
        return self._packed.get(
            self.weight,
            lambda weight: onednn.pack_convolution(weight, *window, self.groups, list(x.shape)),
            rows,
        )

    def _library_serves(self, x: Tensor, weight: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.ndim == 4
            and x.numel() > 0
            and x.dtype == weight.dtype
            and self.padding_mode == "zeros"
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
            and not torch.compiler.is_compiling()
            and not exporting()
            and onednn.has_convolution(x.dtype, self.activation)
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


def packable(conv: nn.Module) -> bool:
    """Whether a module can become a PackedConv2d here."""
    return (
        type(conv) is nn.Conv2d
        and conv.weight.device.type == "cpu"
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and onednn.has_convolution(conv.weight.dtype)
    )
