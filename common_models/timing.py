"""How long alternatives take here, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter, thread_time
from typing import TypeVar

import torch

Item = TypeVar("Item")


def best_times(
    items: Sequence[Item],
    run: Callable[[Item], object],
    before: Callable[[Item], object] = lambda _: None,
    *,
    passes: int = 3,
    within: float = float("inf"),
) -> list[float]:
    """Seconds of each item, the best of several passes, as others use the machine as well.

    All items run in turn, so that the caches hold about what they hold in use.

    Args:
        before: runs before each item, not timed.
        passes: at most so many, at least one.
        within: no pass begins after so many seconds.
    """
    # What others do does not count where this thread alone works.
    clock = thread_time if torch.get_num_threads() == 1 else perf_counter
    best = [float("inf")] * len(items)
    begun_all = perf_counter()
    for done in range(passes):
        if done and perf_counter() - begun_all > within:
            break
        for i, item in enumerate(items):
            before(item)
            begun = clock()
            run(item)
            best[i] = min(best[i], clock() - begun)
    return best
