"""The folder of real data that the demonstration, the benchmarks and the tests use where it is present."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    """The folder of real data: $TRISPARSE_DATA where it is set, else ../shared/data beside the checkout."""
    named = os.environ.get("TRISPARSE_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
