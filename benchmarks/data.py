"""Files of real data: where they are looked for, and what a run that lacks one says."""

from __future__ import annotations

import os
from pathlib import Path


class Unavailable(Exception):
    """A file or library that this run can do without is missing; the text says which."""


def data_file(relative: str) -> Path:
    """A file of `data_folder`; Unavailable where it is absent."""
    path = data_folder() / relative
    if not path.is_file():
        raise Unavailable(f"no {path} (TRISPARSE_DATA names the folder of real data)")
    return path


def data_folder() -> Path:
    """The folder of real data: $TRISPARSE_DATA where it is set, else ../shared/data beside the checkout."""
    named = os.environ.get("TRISPARSE_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
