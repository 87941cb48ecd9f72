"""What `accelerate` says of its result, and the way back to the original."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from common_models.dtypes import name_of


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """What was done to a network; the attribute `acceleration` of what `accelerate` returns.

    Attributes:
        dtype: in which the network computes.
        changed: names of the modules that compute otherwise than before.
        left: why, by name, for each module that could have been changed and was not.
        original: the network that was given, untouched; None after the accelerated one was pickled, which leaves the
            original out.
    """

    dtype: torch.dtype
    changed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    original: nn.Module | None = field(default=None, repr=False, compare=False)

    def summary(self) -> str:
        """One line: what was done."""
        return f"{len(self.changed)} modules changed; computes in {name_of(self.dtype)}"

    def __str__(self) -> str:
        return "\n".join([self.summary(), *(f"  left: {name}: {why}" for name, why in self.left.items())])

    def __deepcopy__(self, memo: dict[int, Any]) -> Acceleration:
        return self  # what was done stays true of a copy, and the original stays the very object

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "original": None}


def restore(model: nn.Module) -> nn.Module:
    """The network that `accelerate` was given, the very object; a network that is not accelerated as it is.

    Raises:
        ValueError: the accelerated network was pickled, which left its original behind.
    """
    made = getattr(model, "acceleration", None)
    if not isinstance(made, Acceleration):
        return model
    if made.original is None:
        raise ValueError(
            "model must still know the network it was made from, got one that was pickled without it: load that network"
        )
    return made.original


def check_not_accelerated(model: nn.Module) -> None:
    """Raise ValueError where a network is accelerated already."""
    if isinstance(getattr(model, "acceleration", None), Acceleration):
        raise ValueError("model must not be accelerated already: restore(model) gives the original")
