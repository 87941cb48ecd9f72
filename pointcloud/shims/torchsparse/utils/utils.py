"""Numbers as tuples and tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def make_ntuple(x: Any, ndim: int) -> tuple[int, ...]:
    """`x` as `ndim` numbers; raises ValueError where it is neither one number nor as many."""
    if isinstance(x, Tensor):
        x = x.flatten().tolist()
    numbers = (x,) * ndim if isinstance(x, int) else tuple(x) if isinstance(x, (list, tuple)) else ()
    if len(numbers) != ndim:
        raise ValueError(f"expected one number or {ndim}, got {x!r}")
    return numbers


def make_tensor(x: Any, dtype: torch.dtype, device: Any) -> Tensor:
    """A tensor of the numbers of x."""
    return torch.tensor(x, dtype=dtype, device=device)


def make_divisible(x: int, divisor: int) -> int:
    """The least multiple of divisor from x on."""
    return -(-x // divisor) * divisor
