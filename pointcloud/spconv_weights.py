"""Weights that spconv wrote, in the layout of this package: `[Cout, *kernel, Cin]`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pointcloud.coordinates import describe

LAYOUTS = ("KRSC", "RSKC", "RSCK", "KERNEL_ONE")
WRITERS = {
    "KRSC": "spconv 2.2 and later, 2.1 for kernels of up to 32 taps",
    "RSKC": "spconv 2.0, 2.1 for larger kernels",
    "RSCK": "spconv 1.x, mmcv.ops",
}


def convert_weight(weight: Tensor, layout: str) -> Tensor:
    """A convolution's weight as our layers keep it, `[Cout, *kernel, Cin]`.

    All versions of spconv read the memory of a weight of kernel size 1 as `[Cin, Cout]`, whatever its shape says. So do
    our layers, unless they have a stride, and such a weight is only reshaped. `convert_state_dict` converts all weights
    of a network, knows their strides, and finds the layout.

    Args:
        layout: that of the weight given.
            "KRSC": the same (spconv 2.2 and later).
            "RSKC": `[*kernel, Cout, Cin]` (spconv 2.0 and 2.1, native algorithm).
            "RSCK": `[*kernel, Cin, Cout]` (spconv 1.x, mmcv.ops).
            "KERNEL_ONE": a weight of kernel size 1 as spconv 2.x and our layers keep it. The result has the order that
            its shape says, for arithmetic of one's own.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not 3 <= weight.ndim <= 6:
        raise ValueError(f"weight must have 1 to 4 kernel axes and two of channels, got {describe(weight)}")
    if layout == "KERNEL_ONE":
        if set(weight.shape[1:-1]) != {1}:
            raise ValueError(f"weight must be [Cout, 1, ..., 1, Cin] for the layout KERNEL_ONE, got {describe(weight)}")
        return kernel_one_in_krsc(weight).contiguous()
    krsc = in_krsc(weight, layout)
    return weight.reshape(krsc.shape).contiguous() if set(krsc.shape[1:-1]) == {1} else krsc.contiguous()


def in_krsc(weight: Tensor, layout: str) -> Tensor:
    """A view of the weight in the layout "KRSC", its axes moved."""
    return weight.movedim({"KRSC": 0, "RSKC": -2, "RSCK": -1}[layout], 0)


def kernel_one_in_krsc(weight: Tensor) -> Tensor:
    """A weight of kernel size 1 in the order of its shape: a view, or a copy where its memory does not allow one."""
    return weight.reshape(weight.shape[-1], weight.shape[0]).T.reshape(weight.shape)


def kernel_one_as_stored(weight: Tensor) -> Tensor:
    """The inverse of `kernel_one_in_krsc`, contiguous."""
    return weight.reshape(weight.shape[0], weight.shape[-1]).T.reshape(weight.shape).contiguous()


def possible_layouts(stored: Sequence[int], wanted: Sequence[int]) -> list[str]:
    """The layouts of spconv in which a weight that should be `wanted`, KRSC, has the shape `stored`."""
    cout, *kernel, cin = wanted
    shapes = {"KRSC": [cout, *kernel, cin], "RSKC": [*kernel, cout, cin], "RSCK": [*kernel, cin, cout]}
    return [layout for layout, shape in shapes.items() if shape == list(stored)]


def layout_hint(key: str, stored: Tensor, weight: Tensor) -> list[str]:
    """What to do about a weight that does not fit: nothing to say, or one sentence."""
    layouts = possible_layouts(stored.shape, weight.shape)
    if not layouts:
        if stored.numel() != math.prod(weight.shape):
            return []
        found = f"has the shape {list(stored.shape)} of another library or layout"
    else:
        found = f"has the layout {' or '.join(f'{layout} ({WRITERS[layout]})' for layout in layouts)}"
    which = ", source=..." if len(layouts) > 1 else ""
    return [
        f"{key} {found}: state_dict = pointcloud.convert_state_dict(state_dict, model{which}) converts all weights "
        "of the network"
    ]
