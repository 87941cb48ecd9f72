"""A class and how probable it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassScore:
    """A class and how probable it is.

    Attributes:
        label: name of the class.
        probability: in [0, 1].
    """

    label: str
    probability: float

    @property
    def name(self) -> str:
        """`label` by its former name."""
        return self.label


def best_classes(probabilities: Tensor, names: Sequence[str], top: int) -> list[ClassScore]:
    """The `top` most probable of C classes, or all of them where there are fewer; of equals the first one.

    Args:
        probabilities: [C].
        names: of the classes.
    """
    order = torch.argsort(probabilities, descending=True, stable=True)[:top].tolist()
    return [ClassScore(names[i], float(probabilities[i])) for i in order]
