"""Which cells a kernel reads: cubes, crosses, and offsets of the user's own."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from pointcloud.shims.lattice import taps

Offsets = tuple[tuple[int, ...], ...]


class RegionType(Enum):
    """The shape of a kernel."""

    HYPER_CUBE = 0
    HYPER_CROSS = 1
    CUSTOM = 2
    HYBRID = 3


def per_axis(value: Any, dimension: int, name: str) -> tuple[int, ...]:
    """`value` as one number for each axis."""
    if not isinstance(dimension, int) or dimension < 1:
        raise ValueError(f"dimension must be given as the number of axes, got {dimension!r}")
    numbers = (value,) * dimension if isinstance(value, int) else tuple(int(v) for v in value)
    if len(numbers) != dimension or min(numbers) < 1:
        raise ValueError(f"{name} must be an int or {dimension} ints of at least 1, got {value!r}")
    return numbers


class KernelGenerator:
    """A kernel's cells, stride and dilation; layers take one in place of their own arguments.

    Args:
        kernel_size, stride, dilation: one number, or one for each axis.
        is_transpose: whether it is for a transposed layer.
        region_type: HYPER_CUBE; HYPER_CROSS, the cells on an axis through the middle; CUSTOM, those of region_offsets.
            HYBRID is refused.
        region_offsets: int [K, D], in units of the tensor stride.
        expand_coordinates: whether a layer makes all cells that it reaches.
        axis_types: refused, as HYBRID.
        dimension: number of axes.
    """

    def __init__(
        self,
        kernel_size: Any = -1,
        stride: Any = 1,
        dilation: Any = 1,
        is_transpose: bool = False,
        region_type: RegionType = RegionType.HYPER_CUBE,
        region_offsets: Tensor | None = None,
        expand_coordinates: bool = False,
        axis_types: Any = None,
        dimension: int = -1,
    ) -> None:
        if region_type is RegionType.HYBRID or axis_types is not None:
            raise NotImplementedError("region_type HYBRID and axis_types are not part of Trisparse's MinkowskiEngine")
        if (region_type is RegionType.CUSTOM) != (region_offsets is not None):
            raise ValueError(f"region_offsets belong to region_type CUSTOM alone, got {region_type}")
        self.dimension, self.is_transpose, self.region_type = dimension, is_transpose, region_type
        self.expand_coordinates, self.axis_types = expand_coordinates, None
        self.kernel_stride = per_axis(stride, dimension, "stride")
        self.kernel_dilation = per_axis(dilation, dimension, "dilation")
        if region_offsets is not None:
            given = torch.as_tensor(region_offsets)
            if given.ndim != 2 or given.shape[1] != dimension or not len(given) or given.is_floating_point():
                raise ValueError(f"region_offsets must be int [K, {dimension}], got {given.dtype} {list(given.shape)}")
            self.kernel_size = (1,) * dimension if isinstance(kernel_size, int) and kernel_size < 1 else per_axis(
                kernel_size, dimension, "kernel_size"
            )  # fmt: skip
            self.offsets: Offsets = tuple(map(tuple, given.tolist()))
        else:
            self.kernel_size = per_axis(kernel_size, dimension, "kernel_size")
            self.offsets = cube(self.kernel_size) if region_type is RegionType.HYPER_CUBE else cross(self.kernel_size)
        self.region_offsets = region_offsets

    @property
    def kernel_volume(self) -> int:
        """Number of taps."""
        return len(self.offsets)

    @property
    def requires_strided_coordinates(self) -> bool:
        """Whether the output lies on a coarser grid."""
        return math.prod(self.kernel_stride) > 1


def cube(kernel: tuple[int, ...]) -> Offsets:
    """A box's cells, the first axis the fastest: around the output where odd, from it onwards where even."""
    start = [k // 2 if k % 2 else 0 for k in kernel]
    return tuple(tuple(r - c for r, c in zip(tap, start)) for tap in taps(kernel, True))


def cross(kernel: tuple[int, ...]) -> Offsets:
    """The middle, then for each axis the steps onwards and those back, the farthest first."""
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"kernel_size must be odd for a cross, got {list(kernel)}")
    cells = [(0,) * len(kernel)]
    for axis, size in enumerate(kernel):
        reach = size // 2
        steps = [*range(1, reach + 1), *range(-reach, 0)]
        cells += [tuple(step if each == axis else 0 for each in range(len(kernel))) for step in steps]
    return tuple(cells)
