"""Names, colours and sizes of classes beside a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from pointcloud.picture.canvas import FAINT, TEXT, Box, Canvas, fit, mix
from pointcloud.picture.colors import UNLABELLED

Array = npt.NDArray[Any]

_ROWS = 18
_NAME_PIXELS = 130


def draw_legend(canvas: Canvas, box: Box, names: Sequence[str], colors: Array, counts: Array) -> None:
    """One row per class; the last entry of `counts` are the points without a label."""
    total = max(int(counts.sum()), 1)
    rows = [(name, tuple(colors[i].tolist()), int(counts[i])) for i, name in enumerate(names)]
    left_out = 0
    if len(rows) > _ROWS:
        rows = sorted(rows, key=lambda row: -row[2])
        left_out, rows = len(rows) - _ROWS, rows[:_ROWS]
    if counts[-1]:
        rows.append(("unlabelled", UNLABELLED, int(counts[-1])))
    height = min(40.0, box.height / (len(rows) + bool(left_out) + 1))
    most = max((count for _, _, count in rows), default=1) or 1
    y = box.top + height
    for name, color, count in rows:
        opacity = 1.0 if count else 0.35
        canvas.swatch(box.left + 2, round(y) - 15, 16, mix(color, opacity))
        canvas.text(box.left + 30, y - 2, fit(name, 16, _NAME_PIXELS), 16, mix(TEXT, opacity))
        share = f"{100 * count / total:.1f} %" if count else "–"
        canvas.text(box.right - 62, y - 2, f"{count:,}", 15.3, mix(TEXT, opacity), "rs")
        canvas.text(box.right - 4, y - 2, share, 13.9, mix(FAINT, opacity), "rs")
        if count and height >= 28:
            canvas.bar(box.left + 30, y + 6.5, (box.width - 34) * count / most, 3, mix(color, 0.8))
        y += height
    if left_out:
        canvas.text(box.left + 30, y - 2, f"and {left_out} smaller classes", 13.9, FAINT)
