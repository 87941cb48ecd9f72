"""What a calibration promises, and whether the promise holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Calibration(ABC):
    """The choice that `calibrate` made on the user's data, and what to expect of it on other data.

    Attributes:
        max_drop: what was asked for: the largest loss (a share of changed answers, or what the domain calls a loss).
        estimate: the loss on data that did not make the choice.
        error: standard error of the estimate.
        confidence: with which `holds` speaks, one-sided.
        gains: whether the choice saves anything; where nothing does within `max_drop`, `accelerate` gives the network
            without skipping.
    """

    max_drop: float | None
    estimate: float
    error: float
    confidence: float = 0.95
    gains: bool = True

    @property
    def at_most(self) -> float:
        """What the true loss does not exceed, with `confidence`."""
        return self.estimate + NormalDist().inv_cdf(self.confidence) * self.error

    @property
    def holds(self) -> bool:
        """Whether what was asked for holds with `confidence` on data that did not make the choice."""
        return self.max_drop is None or self.at_most <= self.max_drop

    @abstractmethod
    def accelerate(self) -> Any:
        """The network with the choice; the network that was calibrated stays as it is."""


def share_with_error(hits: int, total: int) -> tuple[float, float]:
    """A share and its standard error, which is not 0 where nothing was hit (one pseudo-count on each side: Laplace)."""
    if total < 1:
        return 0.0, float("inf")
    smoothed = (hits + 1) / (total + 2)
    return hits / total, (smoothed * (1 - smoothed) / total) ** 0.5


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless the confidence lies in [0.5, 1)."""
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), got {confidence!r}")
