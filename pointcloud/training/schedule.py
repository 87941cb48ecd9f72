"""The learning rate over a training."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int) -> float:
    """Factor on the learning rate: a tenth of the steps of linear warm-up, then half a cosine to zero."""
    warm_up = max(1, steps // 10)
    return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm_up) / max(1, steps - warm_up)))
