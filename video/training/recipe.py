"""Everything that decides what the demonstration networks become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "past": {"direction": "past"},
    "both": {"direction": "both"},
    "no-shift": {"shift": False},
}


@dataclass(frozen=True)
class Recipe:
    """A training run on moving digits; the same recipe gives the same networks on the same machine and versions.

    Every epoch shows each of scikit-learn's training digits once, in a new scene and a random motion. AdamW, linear
    warm-up and cosine decay, cross-entropy on the mean of a clip's logits. Held-out clips show held-out digits.
    """

    seed: int = 0
    backbone: str = "resnet18"
    width: int = 8
    size: int = 48
    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 5e-2
    dropout: float = 0.1
    held_out_rounds: int = 4
    first_held_out_seed: int = 1_000_000
