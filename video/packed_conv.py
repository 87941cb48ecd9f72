"""A convolution for inference on the CPU: weights in the library's own order, the activation in its last step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video.shift import exporting

# What the library packs on every CPU.
DTYPES = (torch.float32, torch.bfloat16)
# The activation's name in the library, and its numbers.
_LIBRARY: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "hardswish": ("hardswish", []),
}
_PLAIN = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish}


class PackedConv2d(nn.Conv2d):
    """As nn.Conv2d, followed by an activation: "none", "relu", "relu6" or "hardswish".

    Without gradients, compilation or export, and on the CPU, oneDNN runs it on weights that are brought into its order
    once, at the first call; otherwise torch runs it as usual.
    """

    activation = "none"

    @classmethod
    def of(cls, conv: nn.Conv2d, activation: str = "none") -> PackedConv2d:
        """A convolution with the parameters of `conv`, which it shares."""
        packed = cls.__new__(cls)
        packed.__dict__ = {key: dict(value) if type(value) is dict else value for key, value in conv.__dict__.items()}
        packed.activation = activation
        packed.drop_packed()
        return packed

    def drop_packed(self) -> None:
        """Forget the weights in the library's order; the next call makes them again."""
        self._packed: tuple[Any, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self._library_serves(x):
            return _PLAIN[self.activation](super().forward(x))
        x = x.contiguous(memory_format=torch.channels_last)
        name, numbers = _LIBRARY[self.activation]
        shape = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._convolution_pointwise(x, self._library_weight(x), self.bias, *shape, name, numbers, "")

    def _library_serves(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.ndim == 4
            and x.numel() > 0
            and x.dtype == self.weight.dtype
            and x.dtype in DTYPES
            and self.padding_mode == "zeros"
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not torch.compiler.is_compiling()
            and not exporting()
        )

    def _library_weight(self, x: Tensor) -> Tensor:
        weight = self.weight
        key = (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)
        if self._packed is None or self._packed[0] != key:
            shape = (self.padding, self.stride, self.dilation, self.groups)
            with torch.no_grad():
                packed = torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *shape, list(x.shape))
            self._packed = (key, packed)
        return self._packed[1]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.drop_packed()  # weights born in inference mode count no versions

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


def packable(conv: nn.Module) -> bool:
    """Whether a module can become a PackedConv2d here."""
    return (
        type(conv) is nn.Conv2d
        and conv.weight.device.type == "cpu"
        and conv.weight.dtype in DTYPES
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )
