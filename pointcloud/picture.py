"""A picture of a labelled cloud: bird's eye and range view, legend, metres."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common_models.files import replace_atomically
from pointcloud.points import PointCloud

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

CLASS_NAMES = ("road", "sidewalk", "building", "vehicle", "vegetation", "pole", "person", "other")
PALETTE: dict[str, tuple[int, int, int]] = {
    "road": (128, 110, 158),
    "sidewalk": (232, 121, 214),
    "building": (222, 178, 92),
    "vehicle": (64, 156, 255),
    "vegetation": (78, 190, 92),
    "pole": (255, 240, 120),
    "person": (255, 74, 74),
    "other": (150, 158, 168),
}
_UNLABELLED = (84, 90, 99)

_WIDTH, _HEIGHT, _DPI = 1600, 1000, 100
_BACKGROUND, _PANEL, _GRID, _TEXT, _FAINT = "#0e1116", "#151a21", "#39424e", "#e6e9ee", "#8d97a5"
# Rasters are drawn this many times larger and averaged: round points with soft edges.
_OVERSAMPLE = 2
_LEGEND_ROWS = 18


@dataclass(frozen=True)
class _Box:
    """A panel in pixels from the lower left corner of the picture."""

    left: int
    bottom: int
    width: int
    height: int

    def axes(self, figure: Figure) -> Axes:
        box = (self.left / _WIDTH, self.bottom / _HEIGHT, self.width / _WIDTH, self.height / _HEIGHT)
        axes = figure.add_axes(box, facecolor=_PANEL)
        axes.tick_params(colors=_FAINT, labelsize=9, length=3)
        for spine in axes.spines.values():
            spine.set_color(_GRID)
        return axes


def class_colors(class_names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """A colour per class, uint8 [C, 3]: PALETTE where it has the name, else hues far apart."""
    colors = np.empty((len(class_names), 3), dtype=np.uint8)
    for i, name in enumerate(class_names):
        if name.lower() in PALETTE:
            colors[i] = PALETTE[name.lower()]
            continue
        # Steps of the golden angle never come back to a hue; three brightness levels part neighbours.
        hue, value = (0.11 + 0.618034 * i) % 1.0, (1.0, 0.8, 0.9)[i % 3]
        channel = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
        colors[i] = np.rint(255 * value * (1 - 0.65 * (1 - channel.clip(0, 1))))
    return colors


def splat(columns: Array, rows: Array, colors: Array, width: int, height: int, size: tuple[float, float]) -> Array:
    """Paint points in their order, later ones over earlier ones -> RGBA uint8 [height, width, 4].

    columns, rows: float pixel positions. size: width and height of a point in pixels.
    """
    wide, high = width * _OVERSAMPLE, height * _OVERSAMPLE
    n_across, n_down = (max(1, round(extent * _OVERSAMPLE)) for extent in size)
    canvas = np.zeros((high * wide, 4), dtype=np.uint8)
    paint = np.concatenate([colors, np.full((len(colors), 1), 255, dtype=np.uint8)], axis=1)
    left = np.floor(columns * _OVERSAMPLE - (n_across - 1) / 2).astype(np.int64)
    top = np.floor(rows * _OVERSAMPLE - (n_down - 1) / 2).astype(np.int64)
    owner = np.full(high * wide, -1, dtype=np.int64)
    order = np.arange(len(colors))
    for dy in range(n_down):
        for dx in range(n_across):
            # The corners of large points are left out, which makes them round.
            corner = dx in (0, n_across - 1) and dy in (0, n_down - 1)
            if corner and min(n_across, n_down) >= 3:
                continue
            x, y = left + dx, top + dy
            inside = (x >= 0) & (x < wide) & (y >= 0) & (y < high)
            # Later points lie on top whatever part of them comes here.
            np.maximum.at(owner, y[inside] * wide + x[inside], order[inside])
    hit = owner >= 0
    canvas[hit] = paint[owner[hit]]
    blocks = canvas.reshape(height, _OVERSAMPLE, width, _OVERSAMPLE, 4).astype(np.float32)
    alpha = blocks[..., 3].mean(axis=(1, 3))
    # The mean colour of what was painted: unpainted pixels must not darken it.
    color = blocks[..., :3].sum(axis=(1, 3)) * 255 / np.maximum(blocks[..., 3].sum(axis=(1, 3)), 1)[..., None]
    return np.concatenate([color, alpha[..., None]], axis=2).round().clip(0, 255).astype(np.uint8)


def _directions(xyz: Array) -> tuple[Array, Array, Array]:
    """Azimuth and elevation in degrees and distance in metres from the origin."""
    distance = np.linalg.norm(xyz, axis=1)
    elevation = np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))
    return np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0])), np.degrees(elevation), distance


def _is_sweep(xyz: Array) -> bool:
    """Whether the cloud looks like what one sensor at the origin sees: ground below it, one depth per direction."""
    directions = _directions(xyz)
    away = directions[2] > 0.5
    azimuth, elevation, distance = (values[away] for values in directions)
    if len(distance) < 100 or (elevation < 0).mean() < 0.1:
        return False
    low, high = np.percentile(elevation, (1, 99))
    if low < -60 or high > 60:
        return False
    cell = np.floor((azimuth + 180) * 2).astype(np.int64) * 1000 + np.floor((elevation + 90) * 2).astype(np.int64)
    order = np.lexsort((distance, cell))
    cell, distance = cell[order], distance[order]
    first = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
    last = np.r_[first[1:], len(cell)] - 1
    shared = last > first
    return not shared.any() or float((distance[last] > 1.5 * distance[first])[shared].mean()) < 0.35


def _bev_limits(xyz: Array, box: _Box) -> tuple[float, float, float, float]:
    """x and y limits with equal scale that fill the box and hold nearly all points."""
    low, high = np.percentile(xyz[:, :2], (0.5, 99.5), axis=0) if len(xyz) else (np.full(2, -10.0), np.full(2, 10.0))
    middle, half = (low + high) / 2, np.maximum((high - low) / 2 * 1.05, 0.5)
    scale = max(half[0] / box.width, half[1] / box.height)
    half = np.array([scale * box.width, scale * box.height])
    return middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1]


def _point_pixels(n_points: int, area: float, low: float, high: float) -> float:
    return float(np.clip(math.sqrt(area / max(n_points, 1)), low, high))


def _nice_step(span: float) -> float:
    """1, 2 or 5 times a power of ten near a fifth of the span."""
    power = 10 ** math.floor(math.log10(span / 5))
    return float(power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power * 5 / span))))


def _draw_bev(axes: Axes, box: _Box, xyz: Array, colors: Array, sensor: bool) -> None:
    from matplotlib.patches import Circle

    x0, x1, y0, y1 = _bev_limits(xyz, box)
    inside = (xyz[:, 0] >= x0) & (xyz[:, 0] <= x1) & (xyz[:, 1] >= y0) & (xyz[:, 1] <= y1)
    order = np.flatnonzero(inside)[np.argsort(xyz[inside, 2], kind="stable")]
    points = xyz[order]
    columns, rows = (points[:, 0] - x0) / (x1 - x0) * box.width, (y1 - points[:, 1]) / (y1 - y0) * box.height
    size = _point_pixels(len(points), box.width * box.height * 0.5, 1.5, 4.0)
    image = splat(columns, rows, colors[order], box.width, box.height, (size, size))
    axes.imshow(image, extent=(x0, x1, y0, y1), aspect="auto", interpolation="nearest", zorder=2)
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)
    step = _nice_step(min(x1 - x0, y1 - y0))
    if sensor:
        farthest = max(math.hypot(x, y) for x in (x0, x1) for y in (y0, y1))
        for i in range(1, int(farthest / step) + 1):
            axes.add_patch(Circle((0, 0), i * step, fill=False, color=_GRID, lw=0.7, zorder=1))
            if x0 < i * step * 0.7071 < x1 and y0 < i * step * 0.7071 < y1:
                text: dict[str, Any] = {
                    "color": _FAINT,
                    "fontsize": 8,
                    "ha": "center",
                    "va": "center",
                    "zorder": 3,
                    "alpha": 0.9,
                }
                axes.text(i * step * 0.7071, i * step * 0.7071, f"{i * step:g} m", **text)
        axes.plot([0], [0], marker="+", color="white", ms=9, mew=1.4, zorder=4)
    else:
        axes.grid(color=_GRID, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    # A bar of round length in the lower left corner.
    left, bottom, unit = x0 + 0.02 * (x1 - x0), y0 + 0.035 * (y1 - y0), (y1 - y0) / box.height
    axes.plot([left, left + step], [bottom, bottom], color="white", lw=3, solid_capstyle="butt", zorder=5)
    axes.text(left + step / 2, bottom + 8 * unit, f"{step:g} m", color="white", fontsize=10, ha="center", zorder=5)
    axes.set_xlabel("x (m)", color=_FAINT, fontsize=9, labelpad=2)
    axes.set_ylabel("y (m)", color=_FAINT, fontsize=9, labelpad=0)
    outside = len(xyz) - len(points)
    note = f"bird's eye view, highest point on top{f' · {outside:,} points outside' if outside else ''}"
    axes.set_title(note, color=_FAINT, fontsize=10, loc="left", pad=5)


def _range_limits(azimuth: Array, elevation: Array) -> tuple[float, float, float, float]:
    """Azimuth and elevation limits in degrees that hold the points: a full turn, or the sector that was seen."""
    low, high = np.percentile(elevation, (0.2, 99.9)) if len(elevation) else (-25.0, 15.0)
    left, right = -180.0, 180.0
    if len(azimuth):
        near, far = np.percentile(azimuth, (0.05, 99.95))
        if far - near < 300:
            left, right = near - 1, far + 1
    return left, right, low - 1.0, high + 1.0


def _draw_range(axes: Axes, box: _Box, xyz: Array, colors: Array) -> None:
    azimuth, elevation, distance = _directions(xyz)
    left, right, low, high = _range_limits(azimuth, elevation)
    order = np.argsort(-distance, kind="stable")
    # Farther points are darker, so that edges in depth show between points of one class.
    shade = np.clip(1.08 - 0.16 * np.log2(1 + distance / 8), 0.45, 1.0)
    colors = np.rint(colors * shade[:, None]).astype(np.uint8)
    # Left of the sensor is left in the picture: the azimuth falls from left to right.
    columns = (right - azimuth) / (right - left) * box.width
    rows = (high - elevation) / (high - low) * box.height
    size = _point_pixels(len(xyz), box.width * box.height * 1.0, 1.0, 6.0)
    image = splat(columns[order], rows[order], colors[order], box.width, box.height, (size * 0.8, size * 1.25))
    axes.imshow(image, extent=(right, left, low, high), aspect="auto", interpolation="nearest")
    axes.set_xlim(right, left)
    axes.set_ylim(low, high)
    step = next(s for s in (5, 10, 15, 30, 45) if (right - left) / s <= 13 or s == 45)
    axes.set_xticks([a for a in range(-180, 181, step) if left <= a <= right])
    axes.set_xlabel("azimuth from x, left positive (°)", color=_FAINT, fontsize=9, labelpad=2)
    axes.set_ylabel("elevation (°)", color=_FAINT, fontsize=9, labelpad=0)
    axes.set_title("range view, as the sensor sees it", color=_FAINT, fontsize=10, loc="left", pad=5)


def _draw_legend(figure: Figure, box: _Box, names: Sequence[str], colors: Array, counts: Array) -> None:
    """One row per class; the last entry of `counts` are the points without a label."""
    from matplotlib.patches import FancyBboxPatch

    axes = figure.add_axes((box.left / _WIDTH, box.bottom / _HEIGHT, box.width / _WIDTH, box.height / _HEIGHT))
    axes.set_xlim(0, box.width)
    axes.set_ylim(0, box.height)
    axes.axis("off")
    total = max(int(counts.sum()), 1)
    rows = [(name, colors[i], int(counts[i])) for i, name in enumerate(names)]
    left_out = 0
    if len(rows) > _LEGEND_ROWS:
        rows = sorted(rows, key=lambda row: -row[2])
        left_out, rows = len(rows) - _LEGEND_ROWS, rows[:_LEGEND_ROWS]
    if counts[-1]:
        rows.append(("unlabelled", np.array(_UNLABELLED), int(counts[-1])))
    height = min(40.0, box.height / (len(rows) + bool(left_out) + 1))
    most = max((count for _, _, count in rows), default=1) or 1
    y = box.height - height
    for name, color, count in rows:
        shown = 1.0 if count else 0.35
        swatch = FancyBboxPatch((2, y - 1), 16, 16, boxstyle="round,pad=0,rounding_size=4", fc=color / 255, ec="none")
        swatch.set_alpha(shown)
        axes.add_patch(swatch)
        label = name if len(name) <= 18 else name[:17] + "…"
        axes.text(30, y + 2, label, color=_TEXT, fontsize=11.5, alpha=shown)
        share = f"{100 * count / total:.1f} %" if count else "–"
        axes.text(box.width - 62, y + 2, f"{count:,}", color=_TEXT, fontsize=11, ha="right", alpha=shown)
        axes.text(box.width - 4, y + 2, share, color=_FAINT, fontsize=10, ha="right", alpha=shown)
        if count and height >= 28:
            axes.plot([30, 30 + (box.width - 34) * count / most], [y - 8, y - 8], color=color / 255, lw=2.0, alpha=0.8)
        y -= height
    if left_out:
        axes.text(30, y + 2, f"and {left_out} smaller classes", color=_FAINT, fontsize=10)


def _boxes(views: tuple[str, ...], aspect: float) -> dict[str, _Box]:
    """Where the panels go. aspect: width over height of the range view."""
    legend_width = 300
    if views == ("range",):
        return {"range": _Box(80, 340, 1490, 560), "legend": _Box(80, 10, 420, 280)}
    if views == ("bev",):
        return {"bev": _Box(80, 60, 1170, 850), "legend": _Box(1280, 60, legend_width, 850)}
    height = int(np.clip(1490 / aspect, 150, 300))
    bottom = 60 + height + 80
    return {
        "range": _Box(80, 60, 1490, height),
        "bev": _Box(80, bottom, 1170, 910 - bottom),
        "legend": _Box(1280, bottom, legend_width, 910 - bottom),
    }


def _as_array(values: Tensor | Array, name: str) -> Array:
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or an array, got {type(values).__name__}")
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _check_inputs(
    cloud: PointCloud | Tensor | Array, labels: Tensor | Array | None, names: Sequence[str], colors: Any
) -> tuple[Array, Array, Array]:
    xyz = _as_array(cloud.xyz if isinstance(cloud, PointCloud) else cloud, "cloud")
    if xyz.ndim != 2 or xyz.shape[1] != 3 or xyz.dtype.kind != "f" or not np.isfinite(xyz).all():
        raise ValueError(f"cloud must be a PointCloud or finite float [N, 3], got {xyz.dtype} {list(xyz.shape)}")
    if labels is None:
        if not isinstance(cloud, PointCloud) or cloud.labels is None:
            raise ValueError("labels must be given: the cloud has none of its own")
        labels = cloud.labels
    classes = _as_array(labels, "labels")
    if classes.shape != (len(xyz),) or classes.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers [N] with N = {len(xyz)}, got {classes.dtype} {list(classes.shape)}")
    classes = classes.astype(np.int64)
    if len(classes) and classes.max() >= len(names):
        raise ValueError(f"labels must be below the number of class_names, {len(names)}, got {classes.max()}")
    table = class_colors(names) if colors is None else np.asarray(_as_array(torch.as_tensor(colors), "colors"))
    if table.shape != (len(names), 3) or table.dtype.kind not in "iu":
        raise ValueError(f"colors must be integers [C, 3] with C = {len(names)}, got {table.dtype} {list(table.shape)}")
    if table.size and not 0 <= table.min() <= table.max() <= 255:
        raise ValueError(f"colors must lie in 0 to 255, got {table.min()} to {table.max()}")
    return xyz.astype(np.float64), classes, table.astype(np.uint8)


def draw_labels(
    cloud: PointCloud | Tensor | Array,
    labels: Tensor | Array | None = None,
    class_names: Sequence[str] = CLASS_NAMES,
    colors: Tensor | Array | Sequence[Sequence[int]] | None = None,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    views: Sequence[str] | None = None,
) -> npt.NDArray[np.uint8]:
    """Draw a labelled cloud from above and as the sensor sees it -> RGB uint8 [1000, 1600, 3].

    cloud: a PointCloud or xyz [N, 3] in metres, z up. labels: integers [N], the cloud's own by default; negative
    ones are drawn as unlabelled. colors: 0 to 255 [C, 3], `class_colors(class_names)` by default.
    path: also written there as PNG. views: "bev" and / or "range"; by default both where the cloud looks like a sweep
    of a sensor at the origin, else "bev" alone.
    Raises TypeError for inputs that are no arrays, ValueError for inputs that do not fit, ImportError without
    matplotlib (extra `pointcloud`).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'trisparse[pointcloud]'") from error
    xyz, classes, table = _check_inputs(cloud, labels, class_names, colors)
    sweep = _is_sweep(xyz)
    if views is None:
        views = ("bev", "range") if sweep else ("bev",)
    if isinstance(views, str) or not views or not set(views) <= {"bev", "range"}:
        raise ValueError(f"views must hold 'bev', 'range' or both, got {views!r}")
    shown = tuple(view for view in ("bev", "range") if view in views)

    classes = np.where(classes < 0, len(table), classes)
    painted = np.concatenate([table, np.array([_UNLABELLED], dtype=np.uint8)])[classes]
    counts = np.bincount(classes, minlength=len(table) + 1)
    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    azimuth, elevation, _ = _directions(xyz)
    left, right, low, high = _range_limits(azimuth, elevation)
    boxes = _boxes(shown, (right - left) / (high - low))
    if "bev" in shown:
        _draw_bev(boxes["bev"].axes(figure), boxes["bev"], xyz, painted, sweep or "range" in shown)
    if "range" in shown:
        _draw_range(boxes["range"].axes(figure), boxes["range"], xyz, painted)
    _draw_legend(figure, boxes["legend"], class_names, table, counts)
    heading = "Labelled point cloud" if title is None else title
    figure.text(80 / _WIDTH, 956 / _HEIGHT, heading, color=_TEXT, fontsize=17, weight="bold", parse_math=False)
    figure.text(1580 / _WIDTH, 956 / _HEIGHT, f"{len(xyz):,} points", color=_FAINT, fontsize=13, ha="right")
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    if path is not None:
        from PIL import Image

        with replace_atomically(path) as partial:
            Image.fromarray(image).save(partial, format="PNG")
    return image
