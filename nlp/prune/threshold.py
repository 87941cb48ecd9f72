"""Keep as many tokens as the text needs: those above a threshold, or those that hold a share of the attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from common_models.errors import ArgumentError
from nlp.prune.cascade import best, queries
from nlp.prune.policy import Live, Plan, Policy, check_common


@dataclass(frozen=True)
class Threshold(Policy):
    """Keeps the tokens that receive more than `theta` times the mean attention of the living tokens.

    The mean is that of a token's own sequence and layer, so that a threshold means the same for texts of every length
    and does not depend on the batch. At least one token of each sequence stays.

    Args:
        theta: the threshold before the last layer, to which those of the layers before it rise evenly; 1 is the mean.
            Or one for each layer, which a token must exceed to be read by it; 0 drops nothing, and the first is 0.
        score: "exact" sums the attention of all queries, "strided:N" estimates it from N of each sequence, which is
            faster only where the CPU lacks AVX-512.
        protect: see `Policy`.
        min_tokens: sequences that began with fewer tokens are left alone.

    Raises:
        ValueError: an argument outside of its range.

    Source: learned token pruning (Kim et al., 2022).
    """

    theta: float | Sequence[float] = 0.5
    _: KW_ONLY
    score: str = "exact"
    protect: tuple[str, ...] | None = None
    min_tokens: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "theta", _per_layer(self.theta, "theta", 0.0, math.inf))
        queries(self.score)
        check_common(self)

    def thetas(self, n_layers: int) -> tuple[float, ...]:
        """The threshold before each of so many layers.

        Raises:
            ValueError: not as many as layers.
        """
        theta: Any = self.theta
        if isinstance(theta, tuple):
            return _as_many(theta, "theta", n_layers)
        return tuple(theta * layer / max(n_layers - 1, 1) for layer in range(n_layers))

    def check(self, n_layers: int, causal: bool) -> None:
        self.thetas(n_layers)

    def importance(self, layer: int, n_layers: int) -> bool | int:
        wanted = layer + 1 < n_layers and self.thetas(n_layers)[layer + 1] > 0
        return queries(self.score) if wanted else False

    def plan(self, live: Live) -> Plan | None:
        theta = self.thetas(live.n_layers)[live.layer]
        if theta == 0 or live.importance is None:
            return None
        sequence = live.sequence()
        # In fp64 sums of fp32 do not depend on their order.
        score = live.importance.double()
        total = score.new_zeros(len(live.original)).index_add(0, sequence, score)
        mean = (total / live.lengths.clamp(min=1)).index_select(0, sequence)
        enough = live.count((score > theta * mean) | live.protected).clamp(min=1)
        return best(score, _where_long(live, enough, self.min_tokens), live)


@dataclass(frozen=True)
class Mass(Policy):
    """Keeps the smallest set of tokens that received the share `p` of a sequence's attention, protected ones included.

    Args:
        p: the share, in (0, 1], in every layer but the last. Or one for each layer, of the attention in the layer
            before it; 1 drops nothing, and the first is 1.
        score: "exact" sums the attention of all queries, "strided:N" estimates it from N of each sequence, which is
            faster only where the CPU lacks AVX-512.
        protect: see `Policy`.
        min_tokens: sequences that began with fewer tokens are left alone.

    Raises:
        ValueError: an argument outside of its range.
    """

    p: float | Sequence[float] = 0.95
    _: KW_ONLY
    score: str = "exact"
    protect: tuple[str, ...] | None = None
    min_tokens: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _per_layer(self.p, "p", 1.0, 1.0))
        queries(self.score)
        check_common(self)

    def masses(self, n_layers: int) -> tuple[float, ...]:
        """The share of the attention that must go on to each of so many layers.

        Raises:
            ValueError: not as many as layers.
        """
        p: Any = self.p
        return _as_many(p, "p", n_layers) if isinstance(p, tuple) else (1.0, *[p] * (n_layers - 1))

    def check(self, n_layers: int, causal: bool) -> None:
        self.masses(n_layers)

    def importance(self, layer: int, n_layers: int) -> bool | int:
        wanted = layer + 1 < n_layers and self.masses(n_layers)[layer + 1] < 1
        return queries(self.score) if wanted else False

    def plan(self, live: Live) -> Plan | None:
        p = self.masses(live.n_layers)[live.layer]
        if p == 1 or live.importance is None:
            return None
        lengths, sequence, place = live.lengths, live.sequence(), live.place()
        shape = (len(lengths), int(lengths.max()))
        mass = live.importance.new_zeros(shape, dtype=torch.float64)
        mass[sequence, place] = live.importance.double()
        rank = torch.full_like(mass, -math.inf)
        rank[sequence, place] = mass[sequence, place].masked_fill(live.protected, math.inf)
        held = mass.gather(1, rank.argsort(stable=True, dim=1, descending=True)).cumsum(1)
        enough = (held < p * held[:, -1:] * (1 - 1e-12)).sum(1) + 1
        enough = torch.minimum(torch.maximum(enough, live.count(live.protected)), lengths)
        return best(live.importance, _where_long(live, enough, self.min_tokens), live)


def _where_long(live: Live, enough: Tensor, min_tokens: int) -> Tensor:
    """[B] int64: `enough` tokens of the sequences that began with `min_tokens`, all of the others."""
    return torch.where(live.original < min_tokens, live.lengths, torch.minimum(enough, live.lengths))


def _per_layer(value: object, name: str, first: float, most: float) -> float | tuple[float, ...]:
    """A number, or one for each layer of which the first must be `first`, from 0 to `most`.

    Raises:
        ValueError: the argument's name, what was expected, what came.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    each: tuple[Any, ...] = tuple(value) if several else (value,)  # type: ignore[arg-type]
    bounded = math.isfinite(most)
    for one in each:
        number = isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one)
        if not number or not (0 < one <= most if bounded else one >= 0):
            allowed = f"in (0, {most:g}]" if bounded else "of at least 0"
            raise ValueError(f"{name} must be a number {allowed}, or one for each layer, got {value!r}")
    if not several:
        return float(each[0])
    if not each or each[0] != first:
        raise ValueError(f"{name} must be {first:g} for the first layer, which reads all tokens, got {value!r}")
    return tuple(float(one) for one in each)


def _as_many(values: tuple[float, ...], name: str, n_layers: int) -> tuple[float, ...]:
    if len(values) != n_layers:
        raise ArgumentError(name, f"must hold one value for each of the {n_layers} layers, got {len(values)}")
    return values
