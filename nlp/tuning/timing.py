"""Time of two networks on the same batches, in turn, on a machine that does other things too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def seconds(device: torch.device) -> float:
    """A clock: CPU time of this thread, or of the process where torch uses several; on other devices wall time."""
    if device.type == "cpu":
        return time.thread_time() if torch.get_num_threads() == 1 else time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def in_turn(
    calls: Sequence[Callable[[int], object]], n_batches: int, repeats: int, device: torch.device
) -> list[float]:
    """Seconds of each call for all batches: the sum over batches of the median of its repeats.

    Every batch goes through all calls before the next one, in the other order each time, so that what else the machine
    does falls on all alike. Each call runs once before anything counts.

    Args:
        calls: functions of a batch's number.
    """
    totals = [0.0] * len(calls)
    for batch in range(n_batches):
        taken: list[list[float]] = [[] for _ in calls]
        for repeat in range(repeats):
            order = range(len(calls)) if repeat % 2 == 0 else range(len(calls) - 1, -1, -1)
            for i in order:
                if batch == repeat == 0:
                    calls[i](batch)
                begin = seconds(device)
                calls[i](batch)
                taken[i].append(seconds(device) - begin)
        for i, each in enumerate(taken):
            totals[i] += statistics.median(each)
    return totals
