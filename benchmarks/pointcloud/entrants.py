"""Who competes in convolution, in which dtypes, on how many threads."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.competitors import OURS, TORCH
from benchmarks.harness import Settings

# Module under which each spconv is imported. Both have the same names.
SPCONVS = {"spconv": "spconv", "spconv-triton": "spconv_triton"}


def entrants(settings: Settings) -> Iterator[tuple[str, str, int]]:
    """(competitor, dtype, threads) of everyone, peers first.

    On a CPU spconv has fp32 only, and is right on one thread only.
    """
    on_gpu = settings.device == "cuda"
    for name in SPCONVS if on_gpu else ("spconv",):
        for dtype in settings.dtypes if on_gpu else ("fp32",):
            if not (name == "spconv" and dtype == "bf16"):  # its released wheels have no bf16
                yield name, dtype, 1
    for name in (TORCH, OURS):
        for dtype in settings.dtypes:
            for threads in settings.threads:
                yield name, dtype, threads
