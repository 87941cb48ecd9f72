"""Points painted into a raster."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Pixels painted in one step: bounds the memory of large clouds.
_PIXELS_PER_STEP = 4_000_000


def packed(colors: Array) -> npt.NDArray[np.uint32]:
    """RGB uint8 [..., 3] as one number each [...], whose bytes in memory are R, G, B, 255."""
    opaque = np.full((*colors.shape[:-1], 4), 255, dtype=np.uint8)
    opaque[..., :3] = colors
    return opaque.view(np.uint32)[..., 0]


def splat(raster: npt.NDArray[np.uint32], columns: Array, rows: Array, colors: Array, size: tuple[int, int]) -> None:
    """Paint points in their order, later ones over earlier ones.

    Args:
        raster: [height, width] as `packed` gives it; painted in place.
        columns: of the points' middles, float [N]; the raster's left edge is 0.
        rows: of the points' middles, float [N]; the raster's upper edge is 0.
        colors: uint8 [N, 3].
        size: width and height of a point in pixels.
    """
    height, width = raster.shape
    wide, high = size
    left = np.floor(columns - (wide - 1) / 2).clip(-wide, width).astype(np.int64)
    top = np.floor(rows - (high - 1) / 2).clip(-high, height).astype(np.int64)
    # A border as wide as a point takes what lies outside: no pixel needs a test.
    across = width + 2 * wide
    bordered = np.zeros((height + 2 * high, across), dtype=np.uint32)
    bordered[high : high + height, wide : wide + width] = raster
    flat, paint = bordered.reshape(-1), packed(colors)
    corner = (top + high) * across + left + wide
    if len(corner) > len(flat):
        corner, paint = _last_of_each(corner, paint, len(flat))
    offsets = _shape_of_point(wide, high, across)
    step = max(1, _PIXELS_PER_STEP // len(offsets))
    for start in range(0, len(corner), step):
        covered = corner[start : start + step, None] + offsets
        # Of several values for one pixel the last one stays, and a point's pixels stand together.
        flat[covered] = paint[start : start + step, None]
    raster[:] = bordered[high : high + height, wide : wide + width]


def _shape_of_point(wide: int, high: int, across: int) -> npt.NDArray[np.int64]:
    """Offsets of a point's pixels from the first of them. Large points have no corners, which makes them round."""
    y, x = np.mgrid[:high, :wide]
    if min(wide, high) >= 3:
        corner = ((x == 0) | (x == wide - 1)) & ((y == 0) | (y == high - 1))
        y, x = y[~corner], x[~corner]
    return (y * across + x).reshape(-1).astype(np.int64)


def _last_of_each(
    corner: npt.NDArray[np.int64], paint: npt.NDArray[np.uint32], n_pixels: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Of the points at one place the last one, in the points' order: it hides the others."""
    last = np.full(n_pixels, -1, dtype=np.int64)
    last[corner] = np.arange(len(corner))
    seen = np.zeros(len(corner), dtype=bool)
    seen[last[last >= 0]] = True
    return corner[seen], paint[seen]
