"""Maps over any list of offsets, to any output coordinates: what no box of taps over a regular grid describes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from common_kernels.checks import INDEX_DTYPES, check_device, describe
from common_kernels.coordinate_table import CoordinateTable
from common_kernels.kernel_map import KernelMap, check_key_range, per_axis
from common_kernels.kernel_map.reference import check_coords, check_unique, ravel, unravel
from common_kernels.operators import operator

REGIONS = ("cube", "cross")


def kernel_offsets(
    kernel_size: int | Sequence[int], ndim: int = 3, dilation: int | Sequence[int] = 1, region: str = "cube"
) -> Tensor:
    """Offsets [K, D] int32 of a kernel: around the output on an axis of odd size, from it onwards on one of even size.

    Args:
        region: "cube" for all cells of the box, row-major; "cross" for those on an axis through the output: the output
            itself first, then axis by axis, ascending.
    """
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}")
    kernel = per_axis(kernel_size, ndim, "kernel_size", minimum=1)
    spread = per_axis(dilation, ndim, "dilation", minimum=1)
    axes = [[(r - (k // 2 if k % 2 else 0)) * d for r in range(k)] for k, d in zip(kernel, spread, strict=True)]
    if region == "cube":
        cells = [list(cell) for cell in itertools.product(*axes)]
    else:
        cells = [[0] * ndim]
        for axis, steps in enumerate(axes):
            cells += [[step if each == axis else 0 for each in range(ndim)] for step in steps if step]
    return torch.tensor(cells, dtype=torch.int32).reshape(-1, ndim)


def offset_map(
    coords: Tensor,
    shape: Sequence[int],
    targets: Tensor,
    target_shape: Sequence[int],
    offsets: Tensor,
    stride: int | Sequence[int] = 1,
    *,
    batch_size: int,
) -> KernelMap:
    """The map in which tap k of output row m reads the input at `targets[m] * stride + offsets[k]`, if there is one.

    Args:
        coords: [N, 1 + D] int32 or int64, D from 1 to 4, batch index first, each row once.
        shape: extent of the input grid, D numbers.
        targets: [M, 1 + D] coordinates of the output rows, each once, of the dtype and on the device of `coords`.
        target_shape: extent of the output grid.
        offsets: [K, D] integers, of either sign, K at least 1.

    Raises:
        ValueError: a coordinate outside of its grid, one that occurs twice, offsets of another shape or dtype.
    """
    for name, each in (("coords", coords), ("targets", targets)):
        if not isinstance(each, Tensor) or each.dtype not in (torch.int32, torch.int64) or each.ndim != 2:
            raise ValueError(f"{name} must be int32 or int64 [N, 1 + D], got {_shown(each)}")
    ndim = coords.shape[1] - 1
    if not 1 <= ndim <= 4 or targets.shape[1] != ndim + 1:
        raise ValueError(f"coords and targets must be [N, 1 + D], got {describe(coords)} and {describe(targets)}")
    check_device("targets", targets, "coords", coords)
    taps = check_offsets(offsets, ndim).to(coords.device)
    grid, out_grid = per_axis(shape, ndim, "shape", 1), per_axis(target_shape, ndim, "target_shape", 1)
    steps = per_axis(stride, ndim, "stride", 1)
    same = targets is coords and max(steps) == 1 and torch.equal(taps, -taps.flip(0))
    table = torch.ops.trisparse.offset_table(coords, targets, taps, grid, out_grid, steps, batch_size)
    return KernelMap(table, coords.shape[0], targets, tuple(out_grid), symmetric=same, source=coords)


@operator("offset_table")
def _offset_table(
    coords: Tensor,
    targets: Tensor,
    taps: Tensor,
    shape: Sequence[int],
    target_shape: Sequence[int],
    stride: Sequence[int],
    batch_size: int,
) -> Tensor:
    """The table [K, M] of `offset_map`. An operator, so that a traced graph checks its own coordinates."""
    check_offsets(taps, len(shape))
    keys = ravel(coords, shape)
    check_coords(coords, shape, batch_size)
    check_coords(targets, target_shape, batch_size)
    check_unique(keys)
    if targets is not coords:
        check_unique(ravel(targets, target_shape))
    known = CoordinateTable(keys)
    table = coords.new_empty(len(taps), len(targets), dtype=torch.int32)
    base = targets.to(torch.int64, copy=True)
    base[:, 1:] *= base.new_tensor(stride)
    extent = base.new_tensor(shape)
    for tap, found in zip(taps, table, strict=True):
        cells = base.clone()
        cells[:, 1:] += tap
        inside = ((cells[:, 1:] >= 0) & (cells[:, 1:] < extent)).all(1)
        found.copy_(known.lookup(torch.where(inside, ravel(cells, shape), -1)))
    return table


@_offset_table.register_check
def _(coords, targets, taps, shape, target_shape, stride, batch_size):  # type: ignore[no-untyped-def]
    ndim = len(shape)
    for name, each in (("coords", coords), ("targets", targets)):
        if each.ndim != 2 or each.dtype not in INDEX_DTYPES or each.shape[1] != 1 + ndim:
            raise ValueError(f"{name} must be int32 or int64 [N, {1 + ndim}], got {describe(each)}")
    if taps.dtype != torch.int64 or taps.ndim != 2 or taps.shape[1] != ndim:
        raise ValueError(f"taps must be int64 [K, {ndim}], got {describe(taps)}")
    check_device("taps", taps, "coords", coords)
    per_axis(stride, ndim, "stride", 1)
    check_device("targets", targets, "coords", coords)
    check_key_range(per_axis(shape, ndim, "shape", 1), batch_size)
    check_key_range(per_axis(target_shape, ndim, "target_shape", 1), batch_size)


@_offset_table.register_fake
def _(coords, targets, taps, shape, target_shape, stride, batch_size):  # type: ignore[no-untyped-def]
    return coords.new_empty(taps.shape[0], targets.shape[0], dtype=torch.int32)


def reached_cells(
    coords: Tensor, target_shape: Sequence[int], offsets: Tensor, stride: int | Sequence[int], *, batch_size: int
) -> Tensor:
    """The cells [M, 1 + D] of the output grid with an input at `cell * stride + offset` for some offset, sorted."""
    ndim = coords.shape[1] - 1
    taps = check_offsets(offsets, ndim).to(coords.device)
    grid, steps = per_axis(target_shape, ndim, "target_shape", 1), per_axis(stride, ndim, "stride", 1)
    check_key_range(grid, batch_size)
    extent, step = taps.new_tensor(grid), taps.new_tensor(steps)
    keys = []
    for tap in taps:
        cells = coords.to(torch.int64, copy=True)
        cells[:, 1:] -= tap
        aligned = (cells[:, 1:] % step == 0).all(1)
        cells[:, 1:] = torch.div(cells[:, 1:], step, rounding_mode="floor")
        inside = ((cells[:, 1:] >= 0) & (cells[:, 1:] < extent)).all(1)
        keys.append(ravel(cells[aligned & inside], grid))
    return unravel(torch.unique(torch.cat(keys)), grid).to(coords.dtype)


def floor_cells(coords: Tensor, target_shape: Sequence[int], stride: int | Sequence[int]) -> Tensor:
    """The cells [M, 1 + D] `floor(coordinate / stride)`, each once, sorted: MinkowskiEngine's rule of output cells."""
    ndim = coords.shape[1] - 1
    cells = coords.to(torch.int64, copy=True)
    step = cells.new_tensor(per_axis(stride, ndim, "stride", 1))
    cells[:, 1:] = torch.div(cells[:, 1:], step, rounding_mode="floor")
    return unravel(torch.unique(ravel(cells, target_shape)), target_shape).to(coords.dtype)


def check_offsets(offsets: Tensor, ndim: int) -> Tensor:
    """The offsets as int64; raises ValueError for what is not an integer tensor [K, D]."""
    integers = (torch.int8, torch.int16, torch.int32, torch.int64)
    if not isinstance(offsets, Tensor) or offsets.dtype not in integers or offsets.ndim != 2 or len(offsets) == 0:
        raise ValueError(f"offsets must be integers [K, {ndim}] with K at least 1, got {_shown(offsets)}")
    if offsets.shape[1] != ndim:
        raise ValueError(f"offsets must have {ndim} columns, one per axis, got {describe(offsets)}")
    wide = offsets.long()
    if int(wide.abs().max()) >= 2**31:
        raise ValueError(f"offsets must stay below 2**31, got {int(wide.abs().max())}")
    return wide


def _shown(value: object) -> str:
    return describe(value) if isinstance(value, Tensor) else type(value).__name__
