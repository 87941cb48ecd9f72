"""A picture of a labelled cloud: bird's eye and range view, legend, metres."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common_models.files import replace_atomically
from pointcloud.picture.canvas import FAINT, HEIGHT, TEXT, Box, Canvas, fit
from pointcloud.picture.colors import CLASS_NAMES, PALETTE, UNLABELLED, class_colors
from pointcloud.picture.legend import draw_legend
from pointcloud.picture.limits import Directions, is_sweep, range_limits
from pointcloud.picture.panels import draw_bev, draw_range
from pointcloud.points import PointCloud

__all__ = ["CLASS_NAMES", "PALETTE", "UNLABELLED", "class_colors", "draw_labels"]

# Fast, and a tenth larger than the smallest.
_COMPRESSION = 3

Array = npt.NDArray[Any]


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
    Raises TypeError for inputs that are no arrays, ValueError for inputs that do not fit, ImportError without Pillow
    (extra `pointcloud`).
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures need Pillow: pip install 'trisparse[pointcloud]'") from error
    xyz, classes, table = _check_inputs(cloud, labels, class_names, colors)
    directions = Directions.of(xyz)
    sweep = is_sweep(directions)
    if views is None:
        views = ("bev", "range") if sweep else ("bev",)
    if isinstance(views, str) or not views or not set(views) <= {"bev", "range"}:
        raise ValueError(f"views must hold 'bev', 'range' or both, got {views!r}")
    shown = tuple(view for view in ("bev", "range") if view in views)

    classes = np.where(classes < 0, len(table), classes)
    painted = np.concatenate([table, np.array([UNLABELLED], dtype=np.uint8)])[classes]
    left, right, low, high = range_limits(directions)
    boxes = _boxes(shown, (right - left) / (high - low))
    canvas = Canvas()
    if "bev" in shown:
        draw_bev(canvas, boxes["bev"], xyz, painted, sweep or "range" in shown)
    if "range" in shown:
        draw_range(canvas, boxes["range"], directions, painted)
    draw_legend(canvas, boxes["legend"], class_names, table, np.bincount(classes, minlength=len(table) + 1))
    heading = "Labelled point cloud" if title is None else title
    canvas.text(80, 44, fit(heading, 23.6, 1250, bold=True), 23.6, TEXT, bold=True)
    canvas.text(1580, 44, f"{len(xyz):,} points", 18, FAINT, "rs")
    image = canvas.finish()
    if path is not None:
        with replace_atomically(path) as partial:
            Image.fromarray(image).save(partial, format="PNG", compress_level=_COMPRESSION)
    return image


def _boxes(views: tuple[str, ...], aspect: float) -> dict[str, Box]:
    """Where the panels go. aspect: width over height of the range view."""
    legend_width = 300
    if views == ("range",):
        return {"range": Box(80, 100, 1490, 560), "legend": Box(80, 710, 420, 280)}
    if views == ("bev",):
        return {"bev": Box(80, 90, 1170, 850), "legend": Box(1280, 90, legend_width, 850)}
    height = int(np.clip(1490 / aspect, 150, 300))
    top = HEIGHT - 60 - height
    return {
        "range": Box(80, top, 1490, height),
        "bev": Box(80, 90, 1170, top - 80 - 90),
        "legend": Box(1280, 90, legend_width, top - 80 - 90),
    }


def _as_array(values: Tensor | Array, name: str) -> Array:
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or an array, got {type(values).__name__}")
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _check_inputs(
    cloud: PointCloud | Tensor | Array, labels: Tensor | Array | None, names: Sequence[str], colors: Any
) -> tuple[Array, Array, Array]:
    xyz = _as_array(cloud.xyz if isinstance(cloud, PointCloud) else cloud, "cloud")
    if xyz.ndim != 2 or xyz.shape[1] != 3 or xyz.dtype.kind != "f":
        raise ValueError(f"cloud must be a PointCloud or finite float [N, 3], got {xyz.dtype} {list(xyz.shape)}")
    finite = np.isfinite(xyz).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"cloud must be a PointCloud or finite float [N, 3], got {xyz[row].tolist()} in row {row}")
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
