"""How many made-up inputs a property is tried on."""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """`usual` in `make test`; `make fuzz` multiplies it by $TRISPARSE_FUZZ."""
    return usual * int(os.environ.get("TRISPARSE_FUZZ", "1"))
