"""Threads are set, left, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common_models.threads import set_threads


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_set_and_left() -> None:
    set_threads(1)
    assert torch.get_num_threads() == 1
    set_threads(None)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_refused(threads: Any) -> None:
    with pytest.raises(ValueError, match="threads must be a whole number of at least 1, or None"):
        set_threads(threads)
