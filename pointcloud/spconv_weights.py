"""Weights that spconv wrote, in the layout of this package: `[Cout, *kernel, Cin]`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pointcloud.coordinates import describe

LAYOUTS = ("KRSC", "RSKC", "RSCK", "KERNEL_ONE")
# What torch writes beside a state dict for layers of spconv, and the number that our layers put in its place.
SPCONV_VERSION = 1
VERSION = 2


def convert_weight(weight: Tensor, layout: str) -> Tensor:
    """A convolution's weight in the layout of this package, `[Cout, *kernel, Cin]`.

    Args:
        layout: that of the weight given.
            "KRSC": the same (spconv 2.2 and later).
            "RSKC": `[*kernel, Cout, Cin]` (spconv 2.0 and 2.1, native algorithm).
            "RSCK": `[*kernel, Cin, Cout]` (spconv 1.x, mmcv.ops).
            "KERNEL_ONE": what spconv 2.x makes of a kernel of size 1. Its shape is `[Cout, 1, …, Cin]`, but the layer
            reads the same memory as `[Cin, Cout]`, and that is what it learns.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not 3 <= weight.ndim <= 6:
        raise ValueError(f"weight must have 1 to 4 kernel axes and two of channels, got {describe(weight)}")
    if layout == "KERNEL_ONE" and set(weight.shape[1:-1]) != {1}:
        raise ValueError(f"weight must be [Cout, 1, ..., 1, Cin] for the layout KERNEL_ONE, got {describe(weight)}")
    return in_krsc(weight, layout).contiguous()


def in_krsc(weight: Tensor, layout: str) -> Tensor:
    """A view (a copy for KERNEL_ONE) of the weight in the layout of this package."""
    if layout == "RSCK":
        return weight.movedim(-1, 0)
    if layout == "RSKC":
        return weight.movedim(-2, 0)
    if layout == "KERNEL_ONE":
        return weight.reshape(weight.shape[-1], weight.shape[0]).T.reshape(weight.shape)
    return weight


def load_spconv_state_dict(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
    """`model.load_state_dict(state_dict, strict)` for weights that spconv 2.x wrote.

    Needed where the checkpoint has lost the metadata that torch keeps beside a state dict (a plain dict, safetensors,
    keys that were renamed) and the model has kernels of size 1, which spconv stores in another order: see
    `convert_weight`. With its metadata a checkpoint of spconv loads by `load_state_dict` alone.
    """
    marked: Any = OrderedDict(state_dict)
    metadata = dict(getattr(state_dict, "_metadata", {}))
    for name, module in model.named_modules():
        if getattr(module, "_version", None) == VERSION and hasattr(module, "reads_kernel_one"):
            metadata[name] = {"version": SPCONV_VERSION}
    marked._metadata = metadata
    return model.load_state_dict(marked, strict=strict)
