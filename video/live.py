"""What runs while a network sees one frame at a time: shifts read the frame before from a memory, not from the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from video.shift import TemporalShift


class Memory:
    """The shifted channels of the frame before, by the shift's name, and those that this frame leaves behind."""

    def __init__(self, names: Mapping[TemporalShift, str], before: Mapping[str, Tensor]) -> None:
        self.names = names
        self.before = before
        self.after: dict[str, Tensor] = {}

    def shift(self, module: TemporalShift, x: Tensor) -> Tensor:
        """x [B, C, H, W] with its first C // fold_div channels replaced by those of the frame before."""
        name, fold = self.names[module], x.shape[1] // module.fold_div
        kept = x[:, :fold]
        before = self.before.get(name)
        self.after[name] = kept
        return torch.cat([torch.zeros_like(kept) if before is None else before, x[:, fold:]], 1)


_MEMORY: ContextVar[Memory | None] = ContextVar("memory", default=None)


def current() -> Memory | None:
    """The memory of the stream that this thread is running, if it is running one."""
    return _MEMORY.get()


@contextmanager
def running(memory: Memory) -> Iterator[Memory]:
    """Run networks live within the block, in this thread or task only."""
    token = _MEMORY.set(memory)
    try:
        yield memory
    finally:
        _MEMORY.reset(token)
