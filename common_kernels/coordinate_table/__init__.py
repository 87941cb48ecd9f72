"""Exact int64 key -> row."""

import torch
from torch import Tensor

from common_kernels.checks import check_device, describe
from common_kernels.coordinate_table import reference
from common_kernels.operators import operator


class CoordinateTable:
    """Finds the row of an int64 key, exactly: any key may be stored and asked for.

        table = CoordinateTable(keys)
        rows = table.lookup(other_keys)

    Among rows with equal keys the first is found, on every device.

    Args:
        keys: [N] int64, N below 2**30. The table keeps a copy.

    Raises:
        ValueError: keys that are not int64 [N], or too many.
    """

    def __init__(self, keys: Tensor) -> None:
        _check_keys(keys)
        self._keys = keys.detach().clone(memory_format=torch.contiguous_format)
        self._slots = torch.ops.trisparse.coordinate_table(self._keys)

    @property
    def n_rows(self) -> int:
        """Number of keys stored, repeated ones included."""
        return self._keys.shape[0]

    def lookup(self, keys: Tensor) -> Tensor:
        """Row of each key, -1 where the table does not hold it.

        Args:
            keys: [M] int64, on the device of the table.

        Returns:
            [M] int32.

        Raises:
            ValueError: keys that are not int64 [M], or on another device.
        """
        return torch.ops.trisparse.coordinate_lookup(self._slots, self._keys, keys)


def _check_keys(keys: Tensor) -> None:
    if keys.ndim != 1 or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 [N], got {describe(keys)}")
    if keys.shape[0] >= 2**30:
        raise ValueError(f"keys must be fewer than 2**30, got {describe(keys)}")


@operator("coordinate_table")
def _build(keys: Tensor) -> Tensor:
    """Slots [2N] int32; what they hold is up to the device's implementation."""
    return reference.build(keys)


_build.register_check(_check_keys)


@_build.register_kernel("cpu")
def _(keys: Tensor) -> Tensor:
    from common_kernels.coordinate_table import cpu

    return cpu.build(keys)


@_build.register_kernel("cuda")
def _(keys: Tensor) -> Tensor:
    from common_kernels.coordinate_table import gpu

    return gpu.build(keys)


@_build.register_fake
def _(keys):  # type: ignore[no-untyped-def]
    return keys.new_empty(2 * keys.shape[0], dtype=torch.int32)


@operator("coordinate_lookup")
def _lookup(slots: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    return reference.lookup(slots, keys, queries)


@_lookup.register_check
def _(slots: Tensor, keys: Tensor, queries: Tensor) -> None:
    _check_keys(keys)
    if queries.ndim != 1 or queries.dtype != torch.int64:
        raise ValueError(f"keys must be int64 [N], got {describe(queries)}")
    check_device("keys", queries, "the table", keys)
    if slots.shape != (2 * keys.shape[0],) or slots.dtype != torch.int32 or slots.device != keys.device:
        raise ValueError(f"slots must be int32 [{2 * keys.shape[0]}] of a table of the keys, got {describe(slots)}")


@_lookup.register_kernel("cpu")
def _(slots: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    from common_kernels.coordinate_table import cpu

    return cpu.lookup(slots, keys, queries)


@_lookup.register_kernel("cuda")
def _(slots: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    from common_kernels.coordinate_table import gpu

    return gpu.lookup(slots, keys, queries)


@_lookup.register_fake
def _(slots, keys, queries):  # type: ignore[no-untyped-def]
    return queries.new_empty(queries.shape[0], dtype=torch.int32)
