"""Policies that differ in one number, for a search by halving."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nlp.prune import Cascade, Mass, Merge, Threshold
from nlp.prune.policy import Policy

_LARGEST_THETA = 1.5


@dataclass(frozen=True)
class Family:
    """Policies by one number.

    Attributes:
        name: for tables.
        make: the policy of a strength in (0, 1): the higher, the fewer tokens are left.
    """

    name: str
    make: Callable[[float], Policy]


def families(n_layers: int, causal: bool, min_tokens: int) -> list[Family]:
    """What is tried by default: merging (where the network allows it), dropping, by share, attention and threshold.

    One drop early on costs the least for what it saves, as all later layers gain and little is measured: on 20
    Newsgroups a merge after the first layer of six lost less than smaller ones after every layer, at every speed.
    """
    if n_layers < 2:
        return []
    early = [max(1, n_layers // 6)]
    found = [
        Family("Cascade, one drop", lambda s: Cascade(1 - s, layers=early, min_tokens=min_tokens)),
        Family("Cascade, its own layers", lambda s: Cascade(1 - s, min_tokens=min_tokens)),
        Family("Mass", lambda s: Mass(1 - s, min_tokens=min_tokens)),
        Family("Threshold", lambda s: Threshold(_LARGEST_THETA * s, min_tokens=min_tokens)),
    ]
    if causal:
        return found
    merging = [
        # Not more than half can merge at once.
        Family("Merge, one merge", lambda s: Merge(1 - s / 2, layers=early, min_tokens=min_tokens)),
    ]
    if n_layers > 2:
        two = [early[0], early[0] + 1]
        merging.append(Family("Merge, two merges", lambda s: Merge(1 - s, layers=two, min_tokens=min_tokens)))
    return merging + found


def check_families(policies: Iterable[object]) -> list[Family]:
    """The families that a caller gave.

    Raises:
        TypeError: something else than a Family, or none at all.
    """
    found = list(policies)
    for one in found:
        if not isinstance(one, Family):
            raise TypeError(f"policies must hold nlp.tuning.Family objects, got {type(one).__name__}")
    if not found:
        raise ValueError("policies must hold at least one family, got none")
    return found  # type: ignore[return-value]
