"""Writers that fail half-way, to see what is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def fail_after_writing(monkeypatch: pytest.MonkeyPatch, name: str, argument: int = 0) -> None:
    """Make the function of this dotted name write half a file to its `argument`-th argument and raise OSError."""

    def failing(*arguments: Any, **_: Any) -> None:
        Path(arguments[argument]).write_bytes(b"half a")
        raise OSError("disk full")

    monkeypatch.setattr(name, failing)
