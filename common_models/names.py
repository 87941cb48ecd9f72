"""What a user may have meant by a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean 'a' or 'b'?` for the close ones among `known`, else the empty string."""
    close = difflib.get_close_matches(name, list(known), cutoff=cutoff)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
