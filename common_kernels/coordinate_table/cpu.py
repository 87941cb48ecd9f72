"""A hash table with linear probing on the CPU.

A slot holds a row, or -1 where it is free; the key of a slot is that of its row. So every int64 is a valid key.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.threads import parallel_for

_GRAIN = 1 << 13
_FREE = np.uint32(0xFFFFFFFF)


def build(keys: Tensor) -> Tensor:
    slots = np.full(2 * keys.shape[0], -1, dtype=np.int32)
    _insert(slots, keys.contiguous().numpy())
    return torch.from_numpy(slots)


def lookup(slots: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    rows = torch.empty(queries.shape, dtype=torch.int32)
    if keys.shape[0] == 0:
        return rows.fill_(-1)
    queries = queries.contiguous()
    slots, keys = slots.contiguous(), keys.contiguous()
    foreign = np.zeros(1, np.bool_)
    parallel_for(_find, len(queries), _GRAIN, rows.numpy(), slots.numpy(), keys.numpy(), queries.numpy(), foreign)
    if foreign[0]:
        raise ValueError(f"slots must be those of a table of the {len(keys)} keys, got others")
    return rows


@njit(nogil=True, cache=True)
def _slot(key, capacity):
    """Slot at which the search for a key begins: 31 mixed bits, scaled to the capacity."""
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return np.int64(((mixed >> np.uint64(33)) * np.uint64(capacity)) >> np.uint64(31))


@njit(nogil=True, cache=True)
def _insert(slots, keys):
    capacity = slots.shape[0]
    for row in range(keys.shape[0]):
        key = keys[row]
        slot = _slot(key, capacity)
        # Half of the slots stay free, so this ends.
        while slots[slot] >= 0 and keys[slots[slot]] != key:
            slot += 1
            if slot == capacity:
                slot = 0
        if slots[slot] < 0:
            slots[slot] = row


@njit(nogil=True, cache=True)
def _find(rows, slots, keys, queries, foreign, begin, end):
    """Row of each query, -1 for none; a foreign table, whose rows are not among the keys or which is full, is told."""
    capacity, n_keys = slots.shape[0], np.uint32(keys.shape[0])
    for m in range(begin, end):
        key = queries[m]
        slot = _slot(key, capacity)
        # As an unsigned number, the -1 of a free slot is no row either: one comparison for both.
        row = np.uint32(slots[slot])
        turned = False
        while row < n_keys and keys[row] != key:
            slot += 1
            if slot == capacity:
                slot = 0
                if turned:
                    row = n_keys
                    break
                turned = True
            row = np.uint32(slots[slot])
        if row < n_keys:
            rows[m] = row
        else:
            rows[m] = -1
            foreign[0] |= row != _FREE
