"""Colours of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
UNLABELLED = (84, 90, 99)


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
