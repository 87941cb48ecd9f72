"""A convolution's update on the CPU."""

from __future__ import annotations

from torch import Tensor

from common_kernels._windows import Window
from common_kernels.conv_update import reference


class Layer:
    """One layer's weights, prepared."""

    def __init__(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int, activation: str) -> None:
        self.weight, self.bias, self.window, self.groups, self.activation = weight, bias, window, groups, activation

    def __call__(
        self,
        x: Tensor,
        changed: Tensor | None,
        out: Tensor,
        residual: Tensor | None,
        also: Tensor | None,
        threshold: float,
        dense: bool | None,
    ) -> Tensor:
        return reference.conv_update(
            x,
            changed,
            self.weight,
            self.bias,
            out,
            self.window,
            self.groups,
            residual,
            also,
            self.activation,
            threshold,
        )
