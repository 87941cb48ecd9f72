"""What stands before a test of the benchmarks is left out of the collections that each measurement begins with."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def short_collections() -> Iterator[None]:
    """`gc.collect()` looks only at objects that the test itself made: all that was imported takes most of a second."""
    gc.freeze()
    yield
    gc.unfreeze()
