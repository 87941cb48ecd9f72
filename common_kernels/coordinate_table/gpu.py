"""A hash table with linear probing on a GPU, in Triton.

A slot holds a row, or -1 where it is free; the key of a slot is that of its row. So every int64 is a valid key, and one
32-bit compare-and-swap claims a slot. Which slot a key gets depends on the order in which programs run; the row found
for it does not: among equal keys the smallest row stays.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # two keys a thread: probing is bound by latency, so many small programs


def build(keys: Tensor, slots: Tensor | None = None) -> Tensor:
    keys = keys.contiguous()
    n_keys = keys.shape[0]
    if slots is None:
        slots = keys.new_empty(2 * n_keys, dtype=torch.int32)
    slots.fill_(-1)
    if n_keys > 0:
        insert_kernel[(triton.cdiv(n_keys, BLOCK),)](slots, keys, n_keys, slots.shape[0], BLOCK=BLOCK)
    return slots


def lookup(slots: Tensor, keys: Tensor, queries: Tensor, rows: Tensor | None = None) -> Tensor:
    queries = queries.contiguous()
    if rows is None:
        rows = torch.empty_like(queries, dtype=torch.int32)
    if keys.shape[0] == 0:
        return rows.fill_(-1)
    if queries.shape[0] > 0:
        grid = (triton.cdiv(queries.shape[0], BLOCK),)
        find_kernel[grid](rows, slots, keys.contiguous(), queries, queries.shape[0], slots.shape[0], BLOCK=BLOCK)
    return rows


@triton.jit
def _first_slot(key, capacity):
    """Slot at which the search for a key begins: 31 mixed bits, scaled to the capacity."""
    mixed = key.to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
    mixed = mixed ^ (mixed >> 32)
    mixed = mixed * 0xD6E8FEB86659FD93
    return ((mixed >> 33).to(tl.int64) * capacity) >> 31


@triton.jit
def insert_kernel(slots_ptr, keys_ptr, n_keys, capacity, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    searching = rows < n_keys
    key = tl.load(keys_ptr + rows, mask=searching, other=0)
    slot = _first_slot(key, capacity)
    probes = 0
    while (tl.max(searching.to(tl.int32), 0) > 0) & (probes < capacity):
        # atomic_cas knows no mask: a row that has found its place compares with -2, which no slot holds.
        expected = tl.where(searching, tl.full((BLOCK,), -1, tl.int32), tl.full((BLOCK,), -2, tl.int32))
        found = tl.atomic_cas(slots_ptr + slot, expected, rows.to(tl.int32), sem="relaxed")
        taken = searching & (found >= 0)
        same = taken & (tl.load(keys_ptr + found, mask=taken, other=0) == key)
        tl.atomic_min(slots_ptr + slot, rows.to(tl.int32), mask=same, sem="relaxed")
        searching = taken & (same == 0)
        slot = tl.where(slot + 1 == capacity, 0, slot + 1)
        probes += 1


@triton.jit
def find_kernel(rows_ptr, slots_ptr, keys_ptr, queries_ptr, n_queries, capacity, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = places < n_queries
    query = tl.load(queries_ptr + places, mask=real, other=0)
    slot = _first_slot(query, capacity)
    row = tl.full((BLOCK,), -1, tl.int32)
    searching = real
    probes = 0
    while (tl.max(searching.to(tl.int32), 0) > 0) & (probes < capacity):
        candidate = tl.load(slots_ptr + slot, mask=searching, other=-1)
        taken = searching & (candidate >= 0) & (candidate < capacity // 2)  # another table's slots name other rows
        same = taken & (tl.load(keys_ptr + candidate, mask=taken, other=0) == query)
        row = tl.where(same, candidate, row)
        searching = taken & (same == 0)
        slot = tl.where(slot + 1 == capacity, 0, slot + 1)
        probes += 1
    tl.store(rows_ptr + places, row, mask=real)
