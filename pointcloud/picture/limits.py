"""What of a cloud a picture shows: directions from the sensor, limits of the panels, steps of their scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Directions:
    """Points [N] as a sensor at the origin sees them: azimuth and elevation in degrees, distance in metres."""

    azimuth: Array
    elevation: Array
    distance: Array

    @classmethod
    def of(cls, xyz: Array) -> Directions:
        """Directions of xyz [N, 3]."""
        across = np.hypot(xyz[:, 0], xyz[:, 1])
        azimuth, elevation = np.arctan2(xyz[:, 1], xyz[:, 0]), np.arctan2(xyz[:, 2], across)
        return cls(np.degrees(azimuth), np.degrees(elevation), np.hypot(across, xyz[:, 2]))


def is_sweep(directions: Directions) -> bool:
    """Whether the cloud looks like what one sensor at the origin sees: ground below it, one depth per direction."""
    away = directions.distance > 0.5
    directions = Directions(directions.azimuth[away], directions.elevation[away], directions.distance[away])
    if len(directions.distance) < 100 or (directions.elevation < 0).mean() < 0.1:
        return False
    low, high = np.percentile(directions.elevation, (1, 99))
    if low < -60 or high > 60:
        return False
    return share_of_depths(directions) < 0.35


def share_of_depths(directions: Directions, cell: float = 0.5) -> float:
    """Of the directions (squares of `cell` degrees) with several points, the share with points at several depths.

    Depths are several where the farthest is at least half as far again as the nearest. 0 where no direction has several
    points, as for a sensor at the origin that looks at its world once.
    """
    azimuth, elevation, distance = directions.azimuth, directions.elevation, directions.distance
    # Azimuth may be 180 itself, elevation 90.
    across, down = int(360 / cell) + 1, int(180 / cell) + 1
    square = np.floor((azimuth + 180) / cell).astype(np.int64) * down + np.floor((elevation + 90) / cell).astype(
        np.int64
    )
    nearest, farthest = np.full(across * down, np.inf), np.zeros(across * down)
    np.minimum.at(nearest, square, distance)
    np.maximum.at(farthest, square, distance)
    shared = np.bincount(square, minlength=across * down) > 1
    return float((farthest > 1.5 * nearest)[shared].mean()) if shared.any() else 0.0


def bev_limits(xyz: Array, width: int, height: int) -> tuple[float, float, float, float]:
    """x and y limits with equal scale that fill a panel of that size and hold nearly all points."""
    low, high = np.percentile(xyz[:, :2], (0.5, 99.5), axis=0) if len(xyz) else (np.full(2, -10.0), np.full(2, 10.0))
    middle, half = (low + high) / 2, (high - low) / 2 * 1.05
    # Half a metre at least; far from the origin as much as its numbers can tell apart.
    half = np.maximum(half, max(0.5, 1e-9 * float(np.abs(middle).max())))
    scale = max(half[0] / width, half[1] / height)
    half = np.array([scale * width, scale * height])
    return middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1]


def range_limits(directions: Directions) -> tuple[float, float, float, float]:
    """Azimuth and elevation limits in degrees that hold the points: a full turn, or the sector that was seen."""
    azimuth, elevation = directions.azimuth, directions.elevation
    low, high = np.percentile(elevation, (0.2, 99.9)) if len(elevation) else (-25.0, 15.0)
    left, right = -180.0, 180.0
    if len(azimuth):
        near, far = np.percentile(azimuth, (0.05, 99.95))
        if far - near < 300:
            left, right = near - 1, far + 1
    return left, right, low - 1.0, high + 1.0


def point_pixels(n_points: int, area: float, low: float, high: float) -> float:
    """Side of a point in pixels so that n_points fill about `area` square pixels, between `low` and `high`."""
    return float(np.clip(math.sqrt(area / max(n_points, 1)), low, high))


def nice_step(span: float) -> float:
    """1, 2 or 5 times a power of ten near a fifth of the span."""
    power = 10 ** math.floor(math.log10(span / 5))
    return float(power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power * 5 / span))))


def multiples(step: float, low: float, high: float) -> Array:
    """The multiples of `step` within [low, high]."""
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step


def tick_label(value: float, step: float) -> str:
    """A number with the decimals that tell it from its neighbours, one `step` away."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    words = f"{value + 0.0:,.{decimals}f}" if abs(value) < 1e9 else f"{value:.4g}"
    return words.replace("-", "−")
