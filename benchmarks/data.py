"""Files of real data: where they are looked for, and what a run that lacks one says."""

from __future__ import annotations

from pathlib import Path

from trisparse.data import data_folder


class Unavailable(Exception):
    """A file or library that this run can do without is missing; the text says which."""


def data_file(relative: str) -> Path:
    """A file of `data_folder`; Unavailable where it is absent."""
    path = data_folder() / relative
    if not path.is_file():
        raise Unavailable(f"no {path} (TRISPARSE_DATA names the folder of real data)")
    return path
