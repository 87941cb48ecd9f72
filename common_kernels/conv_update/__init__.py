"""A convolution that keeps its output from frame to frame and computes again only what its input's changes reach."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.conv_update import reference
from common_kernels.conv_update.density import dense_pays as dense_pays
from common_kernels.conv_update.library import LibraryConvolution
from common_kernels.conv_update.reference import ACTIVATIONS
from common_kernels.windows import Pair, Window, check_threshold

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class ConvUpdate:
    """One convolution layer, prepared once: `layer(x, changed, out)` brings `out` up to date.

    Value recompute: an output pixel is active where its window holds a changed input pixel, or where `also` says so.
    It is computed anew from the current inputs, `act(conv + bias + residual)` with sums in fp32, and compared with the
    kept value. Where no channel moves by more than the threshold the kept value stays, whole, and the pixel counts as
    unchanged; else it is overwritten. So the error of a layer stays below its threshold and never adds up over frames.
    NaN always counts as moved; -0 equals 0.

    A pixel's result does not depend on which other pixels are active, on the batch, or on the number of threads. The
    library's dense convolution, which is taken where it is faster (`dense_pays`), sums in another order: its results
    differ in their last bits, and a layer may switch between the two from frame to frame. Every kept value comes from
    one of the two and from the inputs of its time, so nothing drifts; `dense=False` keeps to the first alone.

    `library` is the layer as one dense convolution.

    Inference only: `out` is mutated, gradients are not recorded. Plain Python that dispatches on the device, not an
    operator of torch.library: that boundary costs 35 µs for each of the sixty layers of a mobile network.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        activation: str = "none",
    ) -> None:
        """Copies and packs the weights: later changes of the tensors have no effect, and `weight` is not to be edited.

        Args:
            weight: [Cout, Cin / groups, kh, kw], fp32, fp64, fp16 or bf16; the inputs have its dtype and device.
            bias: [Cout] of any floating dtype, or None.
            stride, padding, dilation: one int, or one for each axis; padding is with zeros.
            activation: "none", "relu", "relu6", "hardswish" or "silu".

        Raises:
            ValueError: other shapes or dtypes, an unknown activation, a window out of range.
        """
        if weight.ndim != 4 or weight.dtype not in DTYPES or 0 in weight.shape:
            raise ValueError(
                f"weight must be fp32, fp64, fp16 or bf16 [Cout, Cin / groups, kh, kw], got {describe(weight)}"
            )
        if groups < 1 or weight.shape[0] % groups:
            raise ValueError(f"groups must divide the {weight.shape[0]} output channels, got {groups}")
        if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_floating_point()):
            raise ValueError(f"bias must be floating [{weight.shape[0]}], got {describe(bias)}")
        if bias is not None and bias.device != weight.device:
            raise ValueError(f"bias must be on the device of weight, {weight.device}, got {bias.device}")
        if activation not in ACTIVATIONS:
            close = difflib.get_close_matches(activation, ACTIVATIONS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}{hint}")
        self.weight = weight.detach().clone()
        self.bias = None if bias is None else bias.detach().clone()
        self.window = Window.of((weight.shape[2], weight.shape[3]), stride, padding, dilation)
        self.groups = groups
        self.activation = activation
        self.c_out, self.c_in = weight.shape[0], weight.shape[1] * groups
        self.library = LibraryConvolution(self.weight, self.bias, self.window, groups, activation)
        self._kernel: Any = None
        if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16):
            from common_kernels.conv_update import cpu

            self._kernel = cpu.Layer(self.weight, self.bias, self.window, groups, activation, self.library)
        elif weight.device.type == "cuda" and weight.dtype != torch.float64:
            from common_kernels.conv_update import gpu

            self._kernel = gpu.Layer(self.weight, self.bias, self.window, groups, activation)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles pack for themselves: what is packed lies at addresses of this process."""
        window = self.window
        options = (window.stride, window.padding, window.dilation, self.groups, self.activation)
        return _make, (self.weight, self.bias, *options)

    def output_shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """[B, Ho, Wo, Cout] for x [B, H, W, Cin]."""
        return (x.shape[0], *self.window.output_size(x.shape[1], x.shape[2]), self.c_out)

    def __call__(
        self,
        x: Tensor,
        changed: Tensor | None,
        out: Tensor,
        *,
        residual: Tensor | None = None,
        also: Tensor | None = None,
        threshold: float = 0.0,
        dense: bool | float | None = None,
    ) -> Tensor:
        """Bring `out` up to date with `x`.

        Args:
            x: contiguous [B, H, W, Cin], the current input, of the weight's dtype and device.
            changed: [B, H, W] bool, where it differs from the input `out` was computed from; None for everywhere.
            out: contiguous [B, Ho, Wo, Cout] of x's dtype, mutated. Any values for a first frame with changed=None.
            residual: contiguous, of out's shape and dtype, added before the activation.
            also: [B, Ho, Wo] bool, further pixels to compute anew, such as those where the residual changed.
            threshold: the largest move that is not a change, in the units of `out`.
            dense: True for the library's convolution, False for this package's, a number for the library's from that
                share of active pixels on, None for the faster one by `dense_pays`. Decides only where on a CPU both
                are available.

        Returns:
            [B, Ho, Wo] bool, which pixels were overwritten.

        Raises:
            ValueError: shapes, dtypes or devices that do not belong together, tensors that are not contiguous.
        """
        check_threshold(threshold)
        if dense is not None and not dense >= 0:
            raise ValueError(f"dense must be True, False, None or a share of at least 0, got {dense!r}")
        if x.ndim != 4 or x.shape[3] != self.c_in or x.dtype != self.weight.dtype or not x.is_contiguous():
            raise ValueError(
                f"x must be contiguous {describe(self.weight).split()[0]} [B, H, W, {self.c_in}], got {describe(x)}"
                f"{'' if x.is_contiguous() else ', not contiguous'}"
            )
        if x.device != self.weight.device:
            raise ValueError(f"x must be on the device of weight, {self.weight.device}, got {x.device}")
        shape = self.output_shape(x)
        _check_like("out", out, shape, x)
        if residual is not None:
            _check_like("residual", residual, shape, x)
        if changed is not None:
            _check_mask("changed", changed, x.shape[:3], x)
        if also is not None:
            _check_mask("also", also, shape[:3], x)
        if out.numel() == 0:
            return torch.zeros(shape[:3], dtype=torch.bool, device=x.device)
        if self._kernel is not None:
            return self._kernel(x, changed, out, residual, also, float(threshold), dense)
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


def conv_update(
    x: Tensor,
    changed: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    also: Tensor | None = None,
    activation: str = "none",
    threshold: float = 0.0,
    dense: bool | float | None = None,
) -> Tensor:
    """`ConvUpdate` in one call, which packs the weights each time."""
    layer = ConvUpdate(
        weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, activation=activation
    )
    return layer(x, changed, out, residual=residual, also=also, threshold=threshold, dense=dense)


def _make(
    weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int, activation: str
) -> ConvUpdate:
    return ConvUpdate(
        weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, activation=activation
    )


def _check_like(name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if tensor.shape != shape or tensor.dtype != x.dtype or tensor.device != x.device or not tensor.is_contiguous():
        kind = "" if tensor.is_contiguous() else ", not contiguous"
        raise ValueError(
            f"{name} must be contiguous {list(shape)} of x's dtype and device, got {describe(tensor)} on "
            f"{tensor.device}{kind}"
        )


def _check_mask(name: str, mask: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if mask.shape != shape or mask.dtype != torch.bool or mask.device != x.device or not mask.is_contiguous():
        kind = "" if mask.is_contiguous() else ", not contiguous"
        raise ValueError(f"{name} must be contiguous bool {list(shape)} on x's device, got {describe(mask)}{kind}")
