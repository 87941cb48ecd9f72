"""Features whose rows lie in the places of a level's rows, and which of them changed since the frame before."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pointcloud.stream.rows import Rows


class PlacedFeatures(Tensor):
    """Features [n, C] of a level, row by row in the places of its rows.

    Operations on single rows give such features again. Any other operation gets an ordinary tensor, in the order in
    which the network as a whole has the rows.

    Attributes:
        rows: the level.
        changed: places of the rows that differ from those of the frame before, int64; None for all.
    """

    rows: Rows
    changed: Tensor | None
    version: int

    @staticmethod
    def of(features: Tensor, rows: Rows, changed: Tensor | None) -> PlacedFeatures:
        """Features [n, C] that lie so already; they share their memory."""
        placed: PlacedFeatures = torch.Tensor._make_subclass(PlacedFeatures, features)
        placed.rows, placed.changed = rows, changed
        return placed

    def plain(self) -> Tensor:
        """An ordinary tensor of the same memory."""
        return self.as_subclass(Tensor)

    def in_order(self) -> Tensor:
        """An ordinary tensor of its own memory, in the order in which the network as a whole has the rows."""
        return self.plain().index_select(0, self.rows.order)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _ABOUT:
                return func(*args, **kwargs)
            if func in _BY_ROW:
                placed = _level(func, args, kwargs)
                if placed is not None:
                    return cls.of(func(*args, **kwargs), placed[0].rows, union(placed))
            return func(*_ordered(args), **_ordered(kwargs))


def union(features: list[PlacedFeatures]) -> Tensor | None:
    """The rows that changed in any of them."""
    changed = [each.changed for each in features]
    if len(changed) == 1 or any(each is None for each in changed):
        return changed[0] if len(changed) == 1 else None
    return torch.unique(torch.cat([each for each in changed if each is not None]))


def _level(func: Any, args: Any, kwargs: Any) -> list[PlacedFeatures] | None:
    """The operands of an operation on single rows, where all lie in the places of one level."""
    values = list(args) + list(kwargs.values())
    if func is torch.cat:
        if not args or (args[1] if len(args) > 1 else kwargs.get("dim", 0)) not in (1, -1):
            return None
        values = list(args[0])
    placed = [each for each in values if isinstance(each, PlacedFeatures)]
    first = placed[0]
    for each in values:
        if isinstance(each, PlacedFeatures):
            if each.rows is not first.rows or each.ndim != 2:
                return None
        elif isinstance(each, Tensor) and (func is not F.batch_norm or each.ndim != 1):
            return None
    if kwargs.get("out") is not None or kwargs.get("inplace") or (func is F.batch_norm and kwargs.get("training")):
        return None
    return placed


def _ordered(value: Any) -> Any:
    if isinstance(value, PlacedFeatures):
        return value.in_order()
    if type(value) in (tuple, list):
        return type(value)(_ordered(each) for each in value)
    if type(value) is dict:
        return {key: _ordered(each) for key, each in value.items()}
    return value


_BY_ROW = {torch.relu, Tensor.relu, torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.cat, F.batch_norm}
_ABOUT = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "_version", "is_cuda")
} | {
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.element_size, Tensor.__len__,
    Tensor.__hash__, Tensor.untyped_storage, Tensor.is_inference, Tensor.data_ptr, Tensor.as_subclass,
    Tensor.is_contiguous, Tensor.stride,
}  # fmt: skip
