"""How each library lays out the weight of a sparse convolution, by way of `[Cout, *kernel, Cin / groups]`.

All of them compute cross-correlations; they differ in the order of axes and taps. Axes of the kernel are in the order
of the columns of the coordinates that the network was given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common_kernels.checks import describe


@dataclass(frozen=True)
class Kernel:
    """What the layer is whose weight is laid out.

    Attributes:
        out_channels, in_channels: of the layer.
        size: taps along each axis.
        groups: as in torch.
        product: a kernel of size 1 without stride and groups, which spconv computes as a product with `[Cin, Cout]`.
        transposed: the layer is a transposed or inverse convolution.
    """

    out_channels: int
    size: tuple[int, ...]
    in_channels: int
    groups: int = 1
    product: bool = False
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """`[Cout, *kernel, Cin / groups]`."""
        return (self.out_channels, *self.size, self.in_channels // self.groups)

    @property
    def taps(self) -> int:
        """Number of taps."""
        return math.prod(self.size)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.groups == self.in_channels == self.out_channels > 1


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        name: as in LAYOUTS.
        shapes: those that a weight of a kernel may have; none where the library has no such layer.
        decode: from a weight of such a shape to `[Cout, *kernel, Cin / groups]`.
        encode: the inverse, in the first of the shapes.
        operation: names equal for two layouts that are the same for this kernel.
    """

    name: str
    shapes: Callable[[Kernel], list[tuple[int, ...]]]
    decode: Callable[[Tensor, Kernel], Tensor]
    encode: Callable[[Tensor, Kernel], Tensor]
    operation: Callable[[Kernel], str]


def decode(weight: Tensor, layout: str, kernel: Kernel) -> Tensor:
    """`[Cout, *kernel, Cin / groups]`, contiguous, of a weight in a layout.

    Raises:
        ValueError: an unknown layout, or a weight that has not the shape that the layout gives to this kernel.
    """
    found = layout_named(layout)
    shapes = found.shapes(kernel)
    if tuple(weight.shape) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes) or "(there is none for such a layer)"
        raise ValueError(f"weight must be {wanted} in the layout {layout}, got {describe(weight)}")
    return found.decode(weight, kernel).contiguous()


def encode(weight: Tensor, layout: str, kernel: Kernel) -> Tensor:
    """A weight `[Cout, *kernel, Cin / groups]` in another layout, contiguous: the inverse of `decode`.

    Raises:
        ValueError: an unknown layout, one that has no such layer, or a weight of another shape.
    """
    found = layout_named(layout)
    if not found.shapes(kernel):
        raise ValueError(f"layout {layout} has no weight for such a layer: {kernel}")
    if tuple(weight.shape) != kernel.shape:
        raise ValueError(f"weight must be {list(kernel.shape)}, got {describe(weight)}")
    return found.encode(weight, kernel).contiguous()


def layout_named(name: str) -> Layout:
    """The layout of a name of LAYOUTS.

    Raises:
        ValueError: there is none.
    """
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]


def _spconv(name: str, axis_of_cout: int) -> Layout:
    """Axes in another order; a product is read from memory as `[Cin, Cout]` whatever its shape says."""

    def shapes(kernel: Kernel) -> list[tuple[int, ...]]:
        if kernel.groups > 1 and name != "krsc":
            return []
        cout, *rest = kernel.shape
        position = axis_of_cout % len(kernel.shape)
        return [(*rest[:position], cout, *rest[position:])]

    def from_spconv(weight: Tensor, kernel: Kernel) -> Tensor:
        if kernel.product:
            return weight.reshape(kernel.in_channels, kernel.out_channels).T.reshape(kernel.shape)
        return weight.movedim(axis_of_cout, 0)

    def to_spconv(weight: Tensor, kernel: Kernel) -> Tensor:
        if kernel.product:
            return weight.reshape(kernel.out_channels, kernel.in_channels).T.reshape(shapes(kernel)[0])
        return weight.movedim(0, axis_of_cout)

    return Layout(name, shapes, from_spconv, to_spconv, lambda kernel: "memory" if kernel.product else name)


def _by_taps(name: str, reverses: Callable[[Kernel], bool], grouped: bool = False, swaps: bool = False) -> Layout:
    """`[taps, Cin, Cout]`, the first axis of the kernel fastest where `reverses` says so.

    Args:
        grouped: groups are `[taps, groups, Cin / groups, Cout / groups]`.
        swaps: transposed layers are `[taps, Cout, Cin]`.
    """

    def shapes(kernel: Kernel) -> list[tuple[int, ...]]:
        cin, cout = kernel.in_channels, kernel.out_channels
        if kernel.depthwise:
            return [(kernel.taps, cout)] if name in ("minkowski", "warpconvnet") else []
        if kernel.groups > 1:
            return [(kernel.taps, kernel.groups, cin // kernel.groups, cout // kernel.groups)] if grouped else []
        channels = (cout, cin) if swaps and kernel.transposed else (cin, cout)
        full = (kernel.taps, *channels)
        if kernel.taps > 1 or name not in ("torchsparse", "minkowski"):
            return [full]
        return [channels, full] if kernel.product else [full, channels]  # versions differ where there is a stride

    def ordered(by_tap: Tensor, kernel: Kernel) -> Tensor:
        """`[taps, …]` to `[*kernel, …]`."""
        if not reverses(kernel):
            return by_tap.reshape(*kernel.size, *by_tap.shape[1:])
        n = len(kernel.size)
        turned = by_tap.reshape(*kernel.size[::-1], *by_tap.shape[1:])
        return turned.permute(*range(n - 1, -1, -1), *range(n, turned.ndim))

    def from_taps(weight: Tensor, kernel: Kernel) -> Tensor:
        if kernel.depthwise:
            return ordered(weight, kernel).movedim(-1, 0).unsqueeze(-1)
        if kernel.groups > 1:
            parts = ordered(weight, kernel).movedim((-3, -1), (0, 1))  # [groups, Cout / groups, *kernel, Cin / groups]
            return parts.flatten(0, 1)
        weight = weight.unsqueeze(0) if weight.ndim == 2 else weight
        weight = weight.transpose(1, 2) if swaps and kernel.transposed else weight
        return ordered(weight, kernel).movedim(-1, 0)

    def to_taps(weight: Tensor, kernel: Kernel) -> Tensor:
        n = len(kernel.size)
        if kernel.depthwise:
            by_axis = weight.squeeze(-1).movedim(0, -1)
        elif kernel.groups > 1:
            by_axis = weight.unflatten(0, (kernel.groups, -1)).movedim((0, 1), (-3, -1))
        else:
            by_axis = weight.movedim(0, -1)
        if reverses(kernel):
            by_axis = by_axis.permute(*range(n - 1, -1, -1), *range(n, by_axis.ndim))
        by_tap = by_axis.flatten(0, n - 1)
        return (by_tap.transpose(1, 2) if swaps and kernel.transposed else by_tap).reshape(shapes(kernel)[0])

    return Layout(name, shapes, from_taps, to_taps, lambda kernel: f"taps {reverses(kernel)} {swaps}")


def cross_offsets(size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Positions in the cube of the taps of Minkowski Engine's cross: the centre, then each axis outwards."""
    centre = tuple(k // 2 for k in size)
    yield centre
    for axis, k in enumerate(size):
        for offset in itertools.chain(range(1, k // 2 + 1), range(-(k // 2), 0)):
            yield (*centre[:axis], centre[axis] + offset, *centre[axis + 1 :])


def _cross() -> Layout:
    """A cross of taps, as the cube that is zero elsewhere."""

    def shapes(kernel: Kernel) -> list[tuple[int, ...]]:
        if kernel.groups > 1 or kernel.taps == 1 or any(k % 2 == 0 for k in kernel.size):
            return []
        return [(1 + sum(k - 1 for k in kernel.size), kernel.in_channels, kernel.out_channels)]

    def from_cross(weight: Tensor, kernel: Kernel) -> Tensor:
        cube = weight.new_zeros(kernel.shape)
        for tap, position in enumerate(cross_offsets(kernel.size)):
            cube.movedim(0, -2)[position] = weight[tap].T
        return cube

    def to_cross(weight: Tensor, kernel: Kernel) -> Tensor:
        taps = torch.stack([weight.movedim(0, -2)[position].T for position in cross_offsets(kernel.size)])
        if not torch.equal(from_cross(taps, kernel), weight):
            raise ValueError("weight must be zero outside of the cross to be laid out as minkowski-cross")
        return taps

    return Layout("minkowski-cross", shapes, from_cross, to_cross, lambda kernel: "cross")


def _fvdb() -> Layout:
    """torch's own: `[Cout, Cin, *kernel]`, and `[Cout, Cin]` for a product."""

    def shapes(kernel: Kernel) -> list[tuple[int, ...]]:
        if kernel.groups > 1:
            return []
        channels = (kernel.out_channels, kernel.in_channels)
        return [channels] if kernel.taps == 1 else [(*channels, *kernel.size)]

    def to_fvdb(weight: Tensor, kernel: Kernel) -> Tensor:
        return weight.movedim(-1, 1).reshape(shapes(kernel)[0])

    def from_fvdb(weight: Tensor, kernel: Kernel) -> Tensor:
        return weight.reshape(*weight.shape[:2], *kernel.size).movedim(1, -1)

    return Layout("fvdb", shapes, from_fvdb, to_fvdb, lambda kernel: "fvdb")


LAYOUTS = {
    layout.name: layout
    for layout in (
        _spconv("krsc", 0),
        _spconv("rskc", -2),
        _spconv("rsck", -1),
        _by_taps("torchsparse", lambda kernel: kernel.taps % 2 == 1),
        _by_taps("minkowski", lambda kernel: True),
        _cross(),
        _by_taps("warpconvnet", lambda kernel: False, grouped=True),
        _by_taps("ocnn", lambda kernel: False, swaps=True),
        _fvdb(),
    )
}
