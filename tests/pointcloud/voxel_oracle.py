"""Voxelization by a dictionary of cells, with sums written out in float64."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

REDUCE = {
    "mean": lambda rows: rows.mean(0),
    "sum": lambda rows: rows.sum(0),
    "max": lambda rows: rows.amax(0),
    "first": lambda rows: rows[0],
}


def brute(
    points: Tensor, features: Tensor, size: tuple[float, ...], low: list[float], high: list[float] | None,
    batch: list[int], axes: str, reduce: str,
) -> tuple[list[list[int]], Tensor, list[int]]:  # fmt: skip
    """Sorted cells, reduced features and the voxel of each point, from a dictionary and Python's own floats."""
    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, p in enumerate(points[:, :3].tolist()):
        if high is not None and not all(a <= v < b for a, v, b in zip(low, p, high)):
            continue
        cell = [math.floor((v - a) / s) for v, a, s in zip(p, low, size)]
        if high is not None:
            cell = [min(c, math.ceil((b - a) / s - 1e-6) - 1) for c, a, b, s in zip(cell, low, high, size)]
        rows[(batch[i], *(cell if axes == "xyz" else cell[::-1]))].append(i)
    cells = sorted(rows)
    of_point = [-1] * len(points)
    for voxel, cell in enumerate(cells):
        for i in rows[cell]:
            of_point[i] = voxel
    reduced = [REDUCE[reduce](features[rows[cell]].double()) for cell in cells]
    return [list(c) for c in cells], torch.stack(reduced) if reduced else features[:0].double(), of_point
