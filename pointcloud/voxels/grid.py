"""Where voxels lie in space: the one place that turns metres into cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AXES = ("xyz", "zyx")


@dataclass(frozen=True)
class VoxelGrid:
    """A regular grid in space. Cell i of an axis covers `[origin + i * size, origin + (i + 1) * size)`.

    Attributes:
        origin: lower corner of cell 0, metres, always in the order x, y, z.
        voxel_size: extent of a cell, metres, x, y, z.
        shape: number of cells per axis in the order of `axes`.
        axes: order of the coordinate columns after the batch index, "xyz" or "zyx" (the usage of spconv's detectors).
    """

    origin: tuple[float, float, float]
    voxel_size: tuple[float, float, float]
    shape: tuple[int, int, int]
    axes: str = "xyz"

    def __post_init__(self) -> None:
        if self.axes not in AXES:
            raise ValueError(f"axes must be one of {', '.join(AXES)}, got {self.axes!r}")
        _numbers(self.origin, 3, "origin")
        if min(_numbers(self.voxel_size, 3, "voxel_size")) <= 0:
            raise ValueError(f"voxel_size must be positive, got {self.voxel_size!r}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be three numbers of at least 1, got {self.shape!r}")

    @classmethod
    def of_range(
        cls, point_range: Sequence[float], voxel_size: float | Sequence[float], axes: str = "xyz"
    ) -> VoxelGrid:
        """The grid that covers `[xmin, ymin, zmin, xmax, ymax, zmax]`; part of a cell at the upper end is a cell."""
        low_high = _numbers(point_range, 6, "point_range")
        size = _voxel_size(voxel_size)
        low, high = low_high[:3], low_high[3:]
        if any(a >= b for a, b in zip(low, high)):
            raise ValueError(
                f"point_range must be [xmin, ymin, zmin, xmax, ymax, zmax] with each min below its max, got {low_high}"
            )
        cells = []
        for a, b, s in zip(low, high, size):
            exact = (b - a) / s
            # 102.4 / 0.1 is 1024.0000000000001 in binary: a range meant as a multiple of the size counts as one.
            whole = round(exact) if exact < 2**52 else exact
            cells.append(max(1, int(whole if abs(exact - whole) <= 1e-6 * max(1.0, whole) else math.ceil(exact))))
        return cls._checked(tuple(low), size, cells, axes)

    @classmethod
    def around(cls, xyz: Tensor, voxel_size: float | Sequence[float], axes: str = "xyz") -> VoxelGrid:
        """The smallest grid that begins at the least coordinates of xyz [N, 3] (finite) and holds all of its points."""
        size = _voxel_size(voxel_size)
        if xyz.shape[0] == 0:
            return cls._checked((0.0, 0.0, 0.0), size, [1, 1, 1], axes)
        low, high = (bound.double().tolist() for bound in xyz.detach().aminmax(dim=0))
        # The arithmetic of `cells`, so that the largest coordinate falls into the last cell.
        cells = [int((b - a) / s) + 1 for a, b, s in zip(low, high, size)]
        return cls._checked(tuple(low), size, cells, axes)

    @classmethod
    def _checked(cls, origin: tuple[float, ...], size: tuple[float, ...], cells: list[int], axes: str) -> VoxelGrid:
        if max(cells) >= 2**31 or math.prod(cells) >= 2**62:
            raise ValueError(
                f"voxel_size {list(size)} makes a grid of {cells[0]:.4g} x {cells[1]:.4g} x {cells[2]:.4g} cells, "
                "beyond 2**31 per axis or 2**62 in all; give larger voxels or a point_range without stray points"
            )
        shape = cells if axes == "xyz" else cells[::-1]
        return cls((origin[0], origin[1], origin[2]), (size[0], size[1], size[2]), (shape[0], shape[1], shape[2]), axes)

    def cells(self, xyz: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """`floor((xyz - origin) / voxel_size)` of points [N, 3] as int64 [N, 3] in the order of `axes`; not cropped.

        Each operation is rounded on its own in `dtype`, so that every device finds the same cell.
        """
        cell = self.position(xyz.detach(), dtype).floor_()
        # Far-off points would overflow int64; one cell outside of the grid says all there is to say about them.
        return cell.clamp_(-1, max(self.shape)).long()

    def position(self, xyz: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Points [N, 3] in units of cells from the origin, in the order of `axes`."""
        origin = torch.tensor(self.origin, dtype=dtype, device=xyz.device)
        size = torch.tensor(self.voxel_size, dtype=dtype, device=xyz.device)
        scaled = (xyz.to(dtype) - origin) / size
        return scaled if self.axes == "xyz" else scaled.flip(1)

    def inside(self, cells: Tensor) -> Tensor:
        """Which rows of cells [N, 3] lie in the grid, bool [N]."""
        shape = torch.tensor(self.shape, device=cells.device)
        return ((cells >= 0) & (cells < shape)).all(dim=1)

    def centers(self, cells: Tensor) -> Tensor:
        """Centres of cells [M, 3] in the order of `axes`, as float64 [M, 3] x, y, z in metres."""
        order = cells if self.axes == "xyz" else cells.flip(1)
        origin = torch.tensor(self.origin, dtype=torch.float64, device=cells.device)
        return (order + 0.5) * torch.tensor(self.voxel_size, dtype=torch.float64, device=cells.device) + origin


def check_finite(xyz: Tensor) -> None:
    """Raise ValueError where a coordinate of xyz [N, 3] is NaN or infinite."""
    # A sum shows the normal case in one pass; doubles hold the sum of any number of floats.
    if not math.isfinite(float(xyz.detach().sum(dtype=torch.float64))):
        bad = (~xyz.isfinite()).any(dim=1).nonzero().flatten()
        if bad.numel():
            raise ValueError(
                f"points must have finite coordinates, got {xyz[bad[0]].tolist()} in row {int(bad[0])} "
                f"({bad.numel()} of {xyz.shape[0]} rows are not finite)"
            )


def _voxel_size(value: float | Sequence[float]) -> tuple[float, float, float]:
    # Numbers of numpy and torch have no axes.
    scalar = isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0
    values = [float(value)] * 3 if scalar else _numbers(value, 3, "voxel_size")  # type: ignore[arg-type]
    if not all(v > 0 and math.isfinite(v) for v in values):
        raise ValueError(f"voxel_size must be positive, got {value!r}")
    return values[0], values[1], values[2]


def _numbers(values: Sequence[float], n: int, name: str) -> list[float]:
    numbers = [float(v) for v in values]
    if len(numbers) != n or not all(math.isfinite(v) for v in numbers):
        raise ValueError(f"{name} must be {n} finite numbers, got {values!r}")
    return numbers
