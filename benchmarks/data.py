"""Files of real data: where they are looked for, and what a run that lacks one says."""

from __future__ import annotations

import os
from pathlib import Path


class Unavailable(Exception):
    """A file or library that this run can do without is missing; the text says which."""


def data_file(relative: str) -> Path:
    """A file of real data, in $TRISPARSE_DATA or beside the checkout; Unavailable where it is absent."""
    folder = Path(os.environ.get("TRISPARSE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    path = folder / relative
    if not path.is_file():
        raise Unavailable(f"no {path} (TRISPARSE_DATA names the folder of real data)")
    return path
