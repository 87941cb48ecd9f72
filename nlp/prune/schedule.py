"""How many tokens each layer reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from common_models.errors import ArgumentError
from nlp.prune.policy import Live

Layers = str | Sequence[int]


def check_schedule(keep: object, layers: object) -> tuple[float | tuple[float, ...], str | tuple[int, ...]]:
    """`keep` and `layers` of a policy, immutable.

    Raises:
        ValueError: a share outside of (0, 1], shares that rise or do not begin with 1, layers that are no rising
            numbers from 1, both a sequence of shares and layers.
    """
    if isinstance(keep, (int, float)) and not isinstance(keep, bool):
        share: float | tuple[float, ...] = float(keep)
        each: tuple[float, ...] = (float(keep),)
    elif isinstance(keep, Sequence) and not isinstance(keep, str) and keep:
        if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in keep):
            raise ValueError(f"keep must hold shares, got {keep!r}")
        share = each = tuple(float(one) for one in keep)
        if each[0] != 1 or any(a < b for a, b in pairwise(each)):
            raise ValueError(f"keep must begin with 1 (the first layer reads all tokens) and never rise, got {keep!r}")
    else:
        raise ValueError(f"keep must be a share, or one share for each layer, got {keep!r}")
    if not all(0 < one <= 1 for one in each):
        raise ValueError(f"keep must lie above 0 and be at most 1, got {keep!r}")
    if isinstance(layers, str) and layers == "auto":
        return share, "auto"
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"layers must be 'auto' or numbers of layers, got {layers!r}")
    if any(type(one) is not int or one < 1 for one in layers) or any(a >= b for a, b in pairwise(layers)):
        raise ValueError(f"layers must be rising numbers of layers, from 1, got {layers!r}")
    if isinstance(share, tuple):
        raise ValueError(f"layers must be 'auto' where keep names a share for each layer, got {layers!r}")
    return share, tuple(layers)


@functools.lru_cache(maxsize=256)
def shares(keep: float | tuple[float, ...], drops: tuple[int, ...], n_layers: int) -> tuple[float, ...]:
    """The share of its original tokens that a sequence has in each layer.

    With one share it falls by the same factor after each of the layers `drops`, to `keep` after the last.

    Raises:
        ValueError: a number of shares that is not that of the layers, or a drop after the last layer.
    """
    if isinstance(keep, tuple):
        if len(keep) != n_layers:
            raise ArgumentError("keep", f"must hold one share for each of the {n_layers} layers, got {len(keep)}")
        return keep
    if drops and drops[-1] >= n_layers:
        raise ArgumentError(
            "layers", f"must lie between 1 and {n_layers - 1} in a network of {n_layers}, got {drops[-1]}"
        )
    return tuple(keep ** (sum(drop <= layer for drop in drops) / max(len(drops), 1)) for layer in range(n_layers))


def last_drop(each: tuple[float, ...]) -> int:
    """The last layer (from 0) that reads fewer tokens than the one before; 0 where none does."""
    return max((i for i in range(1, len(each)) if each[i] < each[i - 1]), default=0)


def counts(live: Live, share: float, min_tokens: int) -> Tensor:
    """[B] int64: tokens that go on, ceil(share * original length), never less than the protected ones."""
    # Products that are whole but for rounding must not count one more.
    wanted = (live.original.double() * share - 1e-9).ceil().long()
    wanted = torch.maximum(wanted.clamp(min=1), live.count(live.protected))
    lengths = live.lengths
    return torch.where(live.original < min_tokens, lengths, torch.minimum(wanted, lengths))
