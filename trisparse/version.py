"""The version, which pyproject.toml alone states."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path


def _version() -> str:
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    # A checkout states its own version, whatever else is installed.
    if project.is_file():
        text = project.read_text(encoding="utf-8")
        stated = re.search(r'^name = "trisparse"\nversion = "([^"]+)"$', text, re.MULTILINE)
        if stated:
            return stated[1]
    return importlib.metadata.version("trisparse")


__version__ = _version()
