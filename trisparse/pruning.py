"""Policies that remove tokens, as the command line writes them."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlp.prune import Policy

# What follows the colon, for each policy; without it the class's own default counts.
POLICIES = {"cascade": "KEEP", "merge": "KEEP", "mass": "SHARE", "threshold": "THETA"}


def parse_prune(text: str) -> tuple[str, Policy]:
    """A policy from `name` or `name:number`, as in `merge:0.7`; and how to write it with its number.

    Raises:
        ValueError: an unknown name, or a number that is missing after its colon or does not fit.
    """
    from nlp import prune

    name, colon, number = text.partition(":")
    if name not in POLICIES:
        known = ", ".join(f"{each}[:{argument}]" for each, argument in POLICIES.items())
        close = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"; did you mean {close[0] + colon + number!r}?" if close else ""
        raise ValueError(f"--prune must be one of {known}, got {text!r}{hint}")
    kind = {"cascade": prune.Cascade, "merge": prune.Merge, "mass": prune.Mass, "threshold": prune.Threshold}[name]
    try:
        value = float(number) if colon else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise ValueError(f"--prune {text}: a number expected after the colon, got {number!r}")
    try:
        policy: Policy = kind() if value is None else kind(value)
    except ValueError as error:
        raise ValueError(f"--prune {text}: {error}") from None
    first = getattr(policy, next(iter(policy.__dataclass_fields__)))  # type: ignore[attr-defined]
    return f"{name}:{first:g}", policy
