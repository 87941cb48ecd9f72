"""Batches, cells and initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointcloud.shims.lattice import Cells

__all__ = ["batched_coordinates", "kaiming_normal_", "sparse_collate", "sparse_quantize"]


def batched_coordinates(coords: Sequence[Any], dtype: torch.dtype = torch.int32, device: Any = None) -> Tensor:
    """Coordinates [N, D] of samples as one [N, 1 + D] with the sample's number first; int32 takes the floor."""
    columns = []
    for number, each in enumerate(coords):
        cells = torch.as_tensor(each, device=device)
        cells = cells.floor() if cells.is_floating_point() and not dtype.is_floating_point else cells
        cells = cells.to(dtype)
        columns.append(torch.cat([cells.new_full((len(cells), 1), number), cells], 1))
    return torch.cat(columns)


def sparse_collate(
    coords: Sequence[Any],
    feats: Sequence[Any],
    labels: Sequence[Any] | None = None,
    dtype: torch.dtype = torch.int32,
    device: Any = None,
) -> Any:
    """(coordinates, features) of a batch, and labels where they are given."""
    cells = batched_coordinates(coords, dtype, device)
    rows = [torch.as_tensor(each, device=device) for each in feats]
    if len(cells) != sum(map(len, rows)):
        raise ValueError(f"coords and feats must have the same rows, got {len(cells)} and {sum(map(len, rows))}")
    if labels is None:
        return cells, torch.cat(rows)
    return cells, torch.cat(rows), torch.cat([torch.as_tensor(each, device=device) for each in labels])


def sparse_quantize(
    coordinates: Any,
    features: Any = None,
    labels: Any = None,
    ignore_label: int = -100,
    return_index: bool = False,
    return_inverse: bool = False,
    return_maps_only: bool = False,
    quantization_size: Any = None,
    device: Any = "cpu",
) -> Any:
    """The occupied cells of coordinates [N, D], int32, in the order of their first points.

    Returns:
        Cells, then the first point's features, the labels (ignore_label where the points of a cell differ), and if
        asked the first point of each cell and the cell of each point; those alone with return_maps_only.
    """
    numpy = isinstance(coordinates, np.ndarray)
    points = torch.as_tensor(coordinates)
    if quantization_size is not None:
        points = points / torch.as_tensor(quantization_size)
    cells = (points.floor() if points.is_floating_point() else points).int()
    padded = nn.functional.pad(cells, (1, 0))
    kept, inverse = torch.unique(Cells(padded).rows(padded).long(), return_inverse=True)
    maps = ([kept] if return_index else []) + ([inverse] if return_inverse else [])
    if return_maps_only:
        return tuple(maps) if len(maps) > 1 else maps[0] if maps else kept
    out: list[Any] = [cells[kept]]
    if features is not None:
        out.append(torch.as_tensor(features)[kept])
    if labels is not None:
        given = torch.as_tensor(labels)
        mixed = torch.zeros(len(kept), dtype=torch.bool).index_put((inverse,), given != given[kept][inverse], True)
        out.append(given[kept].masked_fill(mixed, ignore_label))
    out = [each.numpy() for each in out] if numpy else out
    out += maps
    return out[0] if len(out) == 1 else tuple(out)


def kaiming_normal_(tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Normal weights of a kernel [K, Cin, Cout] or [Cin, Cout] that keep the variance of rectified features."""
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    volume = tensor.shape[0] if tensor.ndim == 3 else 1
    fan = tensor.shape[-2 if mode == "fan_in" else -1] * volume
    gain = nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    with torch.no_grad():
        return tensor.normal_(0, gain / math.sqrt(fan))
