"""The two views of a cloud: from above, and as its sensor sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pointcloud.picture.canvas import FAINT, GRID, OVERSAMPLE, PANEL, WHITE, Box, Canvas
from pointcloud.picture.limits import (
    Directions,
    bev_limits,
    multiples,
    nice_step,
    point_pixels,
    range_limits,
    tick_label,
)
from pointcloud.picture.splat import packed, splat

Array = npt.NDArray[Any]

_SMALL, _LABEL = 12.5, 14.0


def draw_bev(canvas: Canvas, box: Box, xyz: Array, colors: Array, sensor: bool) -> None:
    """The cloud from above, x to the right; `sensor`: with rings around the origin, else with a grid."""
    x0, x1, y0, y1 = bev_limits(xyz, box.width, box.height)
    inside = (xyz[:, 0] >= x0) & (xyz[:, 0] <= x1) & (xyz[:, 1] >= y0) & (xyz[:, 1] <= y1)
    points, shown = xyz[inside], colors[inside]
    order = np.argsort(points[:, 2], kind="stable")
    points, shown = points[order], shown[order]
    per_metre = box.width / (x1 - x0)
    step = nice_step(min(x1 - x0, y1 - y0))
    x, y = x0 + (np.arange(box.width) + 0.5) / per_metre, y1 - (np.arange(box.height) + 0.5) / per_metre
    xs, ys = multiples(nice_step((x1 - x0) * 0.8), x0, x1), multiples(nice_step((y1 - y0) * 0.8), y0, y1)
    if sensor:
        lines = _rings(x, y, step, per_metre)
    else:
        lines = 0.6 * np.maximum(_near(x, xs, per_metre)[None], _near(y, ys, per_metre)[:, None])
    size = round(point_pixels(len(points), box.width * box.height * 0.5, 1.5, 4.0) * OVERSAMPLE)
    columns, rows = (points[:, 0] - x0) * per_metre * OVERSAMPLE, (y1 - points[:, 1]) * per_metre * OVERSAMPLE
    _paint(canvas, box, lines, columns, rows, shown, (size, size))

    outside = len(xyz) - len(points)
    note = f"bird's eye view, highest point on top{f' · {outside:,} points outside' if outside else ''}"
    _axes(canvas, box, note, "x (m)", "y (m)")
    _x_ticks(canvas, box, xs, lambda value: (value - x0) * per_metre)
    _y_ticks(canvas, box, ys, lambda value: (y1 - value) * per_metre)
    if sensor:
        _sensor(canvas, box, -x0 * per_metre, y1 * per_metre, step * per_metre, step)
    _scale_bar(canvas, box, step * per_metre, step)


def draw_range(canvas: Canvas, box: Box, directions: Directions, colors: Array) -> None:
    """The cloud by azimuth and elevation. The azimuth falls from left to right: left of the sensor is on the left."""
    left, right, low, high = range_limits(directions)
    order = np.argsort(-directions.distance, kind="stable")
    # Farther points are darker, so that edges in depth show between points of one class.
    shade = np.clip(1.08 - 0.16 * np.log2(1 + directions.distance[order] / 8), 0.45, 1.0)
    shaded = np.rint(colors[order] * shade[:, None]).astype(np.uint8)
    columns = (right - directions.azimuth[order]) / (right - left) * box.width * OVERSAMPLE
    rows = (high - directions.elevation[order]) / (high - low) * box.height * OVERSAMPLE
    size = point_pixels(len(order), box.width * box.height, 1.0, 6.0) * OVERSAMPLE
    shape = max(1, round(size * 0.8)), max(1, round(size * 1.25))
    _paint(canvas, box, np.zeros((1, 1)), columns, rows, shaded, shape)

    _axes(canvas, box, "range view, as the sensor sees it", "azimuth from x, left positive (°)", "elevation (°)")
    across = next(step for step in (5, 10, 15, 30, 45) if (right - left) / step <= 13 or step == 45)
    _x_ticks(canvas, box, multiples(across, left, right), lambda value: (right - value) / (right - left) * box.width)
    down = multiples(nice_step(high - low), low, high)
    _y_ticks(canvas, box, down, lambda value: (high - value) / (high - low) * box.height)


def _near(positions: Array, marks: Array, per_metre: float) -> Array:
    """Opacity [N] of lines of one pixel at `marks` for pixels whose middles lie at `positions`."""
    if not len(marks):
        return np.zeros(len(positions))
    distance = np.abs(positions[:, None] - marks).min(axis=1) * per_metre
    return np.clip(1 - distance, 0, 1)


def _rings(x: Array, y: Array, step: float, per_metre: float) -> Array:
    """Opacity [len(y), len(x)] of rings of one pixel around the origin, `step` metres apart."""
    radius = np.hypot(x[None], y[:, None])
    ring = np.rint(radius / step)
    return np.clip(1 - np.abs(radius - ring * step) * per_metre, 0, 1) * (ring > 0)


def _paint(
    canvas: Canvas, box: Box, lines: Array, columns: Array, rows: Array, colors: Array, size: tuple[int, int]
) -> None:
    """The panel's ground with `lines` (their opacity per pixel), and the points on it."""
    panel = canvas.pixels(box)
    ground = np.array(PANEL) + lines[..., None] * (np.array(GRID) - PANEL)
    small = packed(np.rint(ground).astype(np.uint8))
    if small.shape == (1, 1):
        panel[:] = small
    else:
        panel[:] = small.repeat(OVERSAMPLE, axis=0).repeat(OVERSAMPLE, axis=1)
    splat(panel, columns, rows, colors, size)


def _axes(canvas: Canvas, box: Box, title: str, across: str, down: str) -> None:
    canvas.frame(box, GRID)
    canvas.text(box.left, box.top - 8, title, _LABEL, FAINT)
    canvas.text(box.left + box.width / 2, box.bottom + 24, across, _SMALL, FAINT, "ma")
    canvas.text(box.left - 46, box.top + box.height / 2, down, _SMALL, FAINT, upright=True)


def _x_ticks(canvas: Canvas, box: Box, values: Array, place: Callable[[float], float]) -> None:
    for value in values:
        x = box.left + place(value)
        canvas.bar(x - 0.5, box.bottom, 1, 4, FAINT)
        canvas.text(x, box.bottom + 7, tick_label(value, _step(values)), _SMALL, FAINT, "ma")


def _y_ticks(canvas: Canvas, box: Box, values: Array, place: Callable[[float], float]) -> None:
    for value in values:
        y = box.top + place(value)
        canvas.bar(box.left - 4, y - 0.5, 4, 1, FAINT)
        canvas.text(box.left - 8, y, tick_label(value, _step(values)), _SMALL, FAINT, "rm")


def _step(values: Array) -> float:
    return float(values[1] - values[0]) if len(values) > 1 else 1.0


def _sensor(canvas: Canvas, box: Box, x: float, y: float, ring: float, step: float) -> None:
    """A cross at the sensor, and the rings' radii on the diagonal; positions in pixels from the panel's corner."""
    diagonal = math.sqrt(0.5)
    visible = max(box.width - x, 0) / (ring * diagonal), max(y, 0) / (ring * diagonal)
    first = max(1, math.floor(max(-x, y - box.height, 0) / (ring * diagonal)))
    for i in range(first, int(min(visible)) + 1):
        across, down = x + i * ring * diagonal, y - i * ring * diagonal
        if 20 < across < box.width - 20 and 8 < down < box.height - 8:
            canvas.text(box.left + across, box.top + down, f"{i * step:g} m", 11, FAINT, "mm", halo=PANEL)
    if 0 < x < box.width and 0 < y < box.height:
        canvas.bar(box.left + x - 6, box.top + y - 1, 12, 2, WHITE)
        canvas.bar(box.left + x - 1, box.top + y - 6, 2, 12, WHITE)


def _scale_bar(canvas: Canvas, box: Box, length: float, step: float) -> None:
    left, top = box.left + 0.02 * box.width, box.bottom - 0.035 * box.height
    canvas.bar(left, top - 2, length, 4, WHITE)
    canvas.text(left + length / 2, top - 8, f"{step:g} m", _LABEL, WHITE, "ms", halo=PANEL)
