"""The meaning of a kernel map, in plain torch, on any device."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def kernel_map(
    coords: Tensor,
    shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    batch_size: int,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """(output coordinates [M, 1 + D], table [K, M] int32). For a submanifold map the coordinates come back empty."""
    check_coords(coords, shape, batch_size)
    check_unique(ravel(coords, shape))
    taps = [[r * d for r, d in zip(tap, dilation)] for tap in itertools.product(*map(range, kernel))]
    if kind == "submanifold":
        centre = [k // 2 * d for k, d in zip(kernel, dilation)]
        return coords[:0].clone(), _table(coords, coords, shape, taps, [1] * len(shape), centre)
    if kind == "strided":
        out = _reached(coords, out_shape, [_coarse(coords, tap, stride, padding) for tap in taps])
        return out, _table(out, coords, shape, taps, stride, padding)
    out = _reached(coords, out_shape, [(_fine(coords, tap, stride, padding), None) for tap in taps])
    # A transposed map relates the same pairs as a strided one, its inputs being the coarse side.
    return out, transpose_table(_table(coords, out, out_shape, taps, stride, padding), len(out))


def transpose_table(table: Tensor, n_in: int) -> Tensor:
    """table [K, M] of input rows -> [K, N] of output rows. IndexError for a row that is not below N."""
    out = table.new_full((table.shape[0], n_in), -1)
    tap, row = torch.nonzero(table >= 0, as_tuple=True)
    out[tap, table[tap, row].long()] = row.to(table.dtype)
    return out


def ravel(coords: Tensor, shape: Sequence[int]) -> Tensor:
    """Position of each coordinate [N, 1 + D] in the batch of grids, int64 [N]."""
    keys = coords[:, 0].long()
    for axis, extent in enumerate(shape):
        keys = keys * extent + coords[:, 1 + axis]
    return keys


def check_coords(coords: Tensor, shape: Sequence[int], batch_size: int) -> None:
    """Raise where a coordinate lies outside the grid or a batch index outside the batch."""
    if len(coords) == 0:
        return
    extent = coords.new_tensor([batch_size, *shape])
    outside = ((coords < 0) | (coords >= extent)).any(1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"coords must lie in batch_size {batch_size} and shape {list(shape)}: row {row} is {coords[row].tolist()} "
            f"(batch index first), {int(outside.sum())} of {len(coords)} rows lie outside"
        )


def check_unique(keys: Tensor) -> None:
    """Raise where a key occurs twice."""
    ordered, rows = torch.sort(keys, stable=True)
    repeats = (ordered[1:] == ordered[:-1]).nonzero()
    if len(repeats):
        raise_duplicate(int(rows[repeats[0]]), int(rows[repeats[0] + 1]), len(repeats), len(keys))


def raise_duplicate(first: int, second: int, count: int, total: int) -> None:
    raise ValueError(
        f"coords must be unique: row {second} repeats row {first}, {count} of {total} rows repeat an earlier one; "
        "merge them first (voxelize, or SparseConvTensor.coalesce)"
    )


def _coarse(coords: Tensor, tap: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The output of a strided convolution that reads each input through the tap, and whether it is one."""
    position = coords.clone()
    position[:, 1:] += coords.new_tensor([p - t for p, t in zip(padding, tap)])
    step = coords.new_tensor(stride)
    aligned = (position[:, 1:] % step == 0).all(1)
    position[:, 1:] = torch.div(position[:, 1:], step, rounding_mode="floor")
    return position, aligned


def _fine(coords: Tensor, tap: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """`coords * stride - padding + tap`."""
    fine = coords.clone()
    fine[:, 1:] = coords[:, 1:] * coords.new_tensor(stride) + coords.new_tensor([t - p for p, t in zip(padding, tap)])
    return fine


def _reached(coords: Tensor, shape: Sequence[int], candidates: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """The candidates inside the grid, sorted, each once."""
    extent = coords.new_tensor(shape)
    keys = []
    for position, valid in candidates:
        inside = ((position[:, 1:] >= 0) & (position[:, 1:] < extent)).all(1)
        keys.append(ravel(position[inside if valid is None else inside & valid], shape))
    return unravel(torch.unique(torch.cat(keys)), shape).to(coords.dtype)


def unravel(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """The coordinates [N, 1 + D] of keys [N]."""
    columns = []
    for extent in reversed(shape):
        columns.append(keys % extent)
        keys = keys // extent
    return torch.stack([keys, *reversed(columns)], dim=1)


def _table(
    coarse: Tensor,
    fine: Tensor,
    fine_shape: Sequence[int],
    taps: list[list[int]],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """[K, len(coarse)]: the row of `fine` at coordinate `coarse * stride - padding + tap`, or -1."""
    keys, rows = torch.sort(ravel(fine, fine_shape))
    table = torch.full((len(taps), len(coarse)), -1, dtype=torch.int32, device=coarse.device)
    if len(fine) == 0:
        return table
    extent = coarse.new_tensor(fine_shape)
    for tap, found in zip(taps, table):
        position = _fine(coarse, tap, stride, padding)
        inside = ((position[:, 1:] >= 0) & (position[:, 1:] < extent)).all(1)
        query = ravel(position, fine_shape)
        slot = torch.searchsorted(keys, query).clamp(max=len(keys) - 1)
        hit = inside & (keys[slot] == query)
        found[hit] = rows[slot[hit]].to(torch.int32)
    return table
