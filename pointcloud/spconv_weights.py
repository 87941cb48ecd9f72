"""Weights that spconv wrote, in the layout of this package: `[Cout, *kernel, Cin]`."""

from __future__ import annotations

from torch import Tensor

from pointcloud.coordinates import describe

LAYOUTS = ("KRSC", "RSKC", "RSCK", "KERNEL_ONE")


def convert_weight(weight: Tensor, layout: str) -> Tensor:
    """A convolution's weight in the layout of this package, `[Cout, *kernel, Cin]`.

    Args:
        layout: that of the weight given.
            "KRSC": the same (spconv 2.2 and later).
            "RSKC": `[*kernel, Cout, Cin]` (spconv 2.0 and 2.1, native algorithm).
            "RSCK": `[*kernel, Cin, Cout]` (spconv 1.x, mmcv.ops).
            "KERNEL_ONE": what spconv 2.x makes of a kernel of size 1. Its shape is `[Cout, 1, …, Cin]`, but the layer
            reads the same memory as `[Cin, Cout]`, and that is what it learns. Our layers keep that order in their
            state dicts, so that checkpoints pass both ways; their `weight` has the order that its shape says.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not 3 <= weight.ndim <= 6:
        raise ValueError(f"weight must have 1 to 4 kernel axes and two of channels, got {describe(weight)}")
    if layout == "KERNEL_ONE" and set(weight.shape[1:-1]) != {1}:
        raise ValueError(f"weight must be [Cout, 1, ..., 1, Cin] for the layout KERNEL_ONE, got {describe(weight)}")
    return in_krsc(weight, layout).contiguous()


def in_krsc(weight: Tensor, layout: str) -> Tensor:
    """A view of the weight (a copy where its memory does not allow one) in the layout of this package."""
    if layout == "RSCK":
        return weight.movedim(-1, 0)
    if layout == "RSKC":
        return weight.movedim(-2, 0)
    if layout == "KERNEL_ONE":
        return weight.reshape(weight.shape[-1], weight.shape[0]).T.reshape(weight.shape)
    return weight


def kernel_one_as_stored(weight: Tensor) -> Tensor:
    """The inverse of `in_krsc(…, "KERNEL_ONE")`: a view where the weight's memory is `[Cin, Cout]`, else a copy."""
    return weight.reshape(weight.shape[0], weight.shape[-1]).T.reshape(weight.shape)
