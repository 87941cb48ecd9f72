"""What runs while a network sees one frame at a time: shifts read a memory of the frame before, not the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from common_kernels.checks import describe


class Memory:
    """The shifted channels of the frame before, by the shift's name, and those that this frame leaves behind.

    One memory serves one pass of one network. With an empty `before` every stream is fresh.
    """

    def __init__(self, names: Mapping[nn.Module, str], before: Mapping[str, Tensor]) -> None:
        self.names = names
        self.before = before
        self.after: dict[str, Tensor] = {}

    def shift(self, module: nn.Module, x: Tensor, fold: int) -> Tensor:
        """x [B, C, H, W] with its first `fold` channels replaced by those of the frame before.

        Raises:
            ValueError: what the memory holds does not fit x, or the shift runs a second time in this pass.
        """
        name = self.names.get(module)
        if name is None:
            raise ValueError("a temporal shift of another network ran within the step of this one")
        if name in self.after:
            raise ValueError(f"{name} ran twice for one frame: each place of a live network needs a shift of its own")
        memory_format = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        # A copy: a view would keep all channels alive, and change when a later layer works in place.
        kept = x[:, :fold].clone(memory_format=memory_format)
        self.after[name] = kept
        before = self._before(name, kept)
        if before is None:
            before = torch.zeros_like(kept)
        # In one format with x: cat of two formats would fall back to a third way through the next layer.
        return torch.cat([before.contiguous(memory_format=memory_format), x[:, fold:]], 1)

    def _before(self, name: str, like: Tensor) -> Tensor | None:
        before = self.before.get(name)
        if before is None:
            if self.before:
                raise ValueError(f"state is of another network: it holds nothing for {name}, only {_list(self.before)}")
            return None
        if before.shape != like.shape:
            raise ValueError(
                f"state holds {describe(before)} for {name}, this frame needs {list(like.shape)}: "
                "streams whose frames change size must be reset(), all of a batch together"
            )
        if before.dtype != like.dtype or before.device != like.device:
            raise ValueError(
                f"state holds {describe(before)} on {before.device} for {name}, this frame needs "
                f"{describe(like)} on {like.device}: move it with state.to(...)"
            )
        return before


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _list(names: Mapping[str, Tensor]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


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
