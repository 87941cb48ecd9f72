"""How many threads torch computes with."""

from __future__ import annotations

import torch


def set_threads(threads: int | None) -> None:
    """Let torch compute with so many threads in this process; None leaves the number as it is.

    Raises:
        ValueError: not a whole number of at least 1.
    """
    if threads is None:
        return
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be a whole number of at least 1, or None, got {threads!r}")
    torch.set_num_threads(threads)
