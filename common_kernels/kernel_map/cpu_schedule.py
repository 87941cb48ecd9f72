"""The pairs of a kernel map, tile by tile and tap by tap, as the CPU's gather-GEMM walks them."""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import ReferenceType, ref

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.simd import HAS_COMPRESS, LANES, compress_valid, count_valid
from common_kernels.threads import parallel_for

# Output rows per tile: their accumulators stay in the second-level cache, and a tap still finds enough rows to fill
# register tiles. Slots are int16.
TILE = 256


def map_schedule(table: Tensor) -> list[Tensor]:
    """[source [P] int32, slot [P] int16, offsets [tiles * K + 1] int64] of a table [K, M]."""
    entries = table.contiguous().numpy()
    taps, rows = entries.shape
    tiles = -(-rows // TILE)
    counts = np.zeros(tiles * taps + 1, np.int64)
    parallel_for(_count, tiles, 16, entries, counts)
    offsets = np.cumsum(counts)
    source, slot = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int16)
    parallel_for(_fill, tiles, 16, entries, offsets, source, slot)
    schedule = [torch.from_numpy(source), torch.from_numpy(slot), torch.from_numpy(offsets)]
    _certify(table, schedule, _highest(schedule[0]))
    return schedule


@dataclass(frozen=True)
class _Certificate:
    """What is known of a schedule whose every number was looked at, or that was just made: it hangs on its tensor.

    Attributes:
        parts: the table, and the schedule's other tensors.
        versions: how often the tensors had been written to.
        highest: the highest row of x that is named, -1 for none.
    """

    parts: tuple[ReferenceType[Tensor], ...]
    versions: tuple[int, ...]
    highest: int

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()  # copies are other tensors


_NAME = "_trisparse_certificate"


def check_schedule(table: Tensor, schedule: Sequence[Tensor], n_in: int) -> None:
    """Raise unless a schedule is one of table [K, M] and names rows below `n_in` only.

    Every number that becomes an address is looked at, once: later calls see that the tensors are the same. That the
    pairs are those of this table is seen by the first and the last one of each tile and tap.
    """
    certificate = getattr(schedule[0], _NAME, None) if schedule else None
    if certificate is None or not _covers(certificate, table, schedule):
        certificate = _certify(table, schedule, _look_through(table, schedule))
    if certificate.highest >= n_in:
        raise ValueError(f"table must name rows below the {n_in} rows of x, got row {certificate.highest}")


def _certify(table: Tensor, schedule: Sequence[Tensor], highest: int) -> _Certificate:
    tensors = (table, *schedule[1:])
    certificate = _Certificate(tuple(map(ref, tensors)), _versions(table, schedule), highest)
    setattr(schedule[0], _NAME, certificate)
    return certificate


def _covers(certificate: _Certificate, table: Tensor, schedule: Sequence[Tensor]) -> bool:
    known, tensors = certificate.parts, (table, *schedule[1:])
    same = len(known) == len(tensors) and all(part() is tensor for part, tensor in zip(known, tensors))
    return same and certificate.versions == _versions(table, schedule)


def _versions(table: Tensor, schedule: Sequence[Tensor]) -> tuple[int, ...]:
    """Inference tensors do not count how often they are written to."""
    return tuple(0 if each.is_inference() else each._version for each in (table, *schedule))


def _look_through(table: Tensor, schedule: Sequence[Tensor]) -> int:
    """The highest row that is named; ValueError unless the schedule is one of table [K, M]."""
    taps, rows = table.shape
    tiles = -(-rows // TILE)
    got = [describe(each) for each in schedule]
    if [each.dtype for each in schedule] != [torch.int32, torch.int16, torch.int64] or not all(
        each.ndim == 1 and each.is_contiguous() for each in schedule
    ):
        raise ValueError(f"schedule must be contiguous int32 [P], int16 [P] and int64 [tiles * K + 1], got {got}")
    source, slot, offsets = (each.numpy() for each in schedule)
    foreign = np.ones(1, np.bool_)
    if len(slot) == len(source) and len(offsets) == tiles * taps + 1 and offsets[0] == 0 and offsets[-1] == len(source):
        foreign[0] = False
        entries = table.contiguous().numpy()
        parallel_for(_check, tiles, 16, entries, source, slot.view(np.uint16), offsets, foreign)
    if foreign[0]:
        raise ValueError(f"schedule must be that of the table {list(table.shape)}, got the {got} of another one")
    return _highest(schedule[0])


def _highest(source: Tensor) -> int:
    return int(source.max()) if len(source) else -1


@njit(nogil=True, cache=True)
def _check(table, source, slot, offsets, foreign, begin, end):
    taps, rows = table.shape
    for tile in range(begin, end):
        first = tile * TILE
        here = min(TILE, rows - first)
        for k in range(taps):
            at, after = offsets[tile * taps + k], offsets[tile * taps + k + 1]
            if at == after:
                continue
            if at < 0 or after > len(source) or not 0 < after - at <= here:
                foreign[0] = True
                return
            lowest, tallest = np.int32(0), np.uint16(0)  # as an unsigned number, a negative slot is too large as well
            for i in range(at, after):
                lowest = min(lowest, source[i])
            for i in range(at, after):
                tallest = max(tallest, slot[i])
            if lowest < 0 or tallest >= here:
                foreign[0] = True
                return
            if table[k, first + slot[at]] != source[at] or table[k, first + slot[after - 1]] != source[after - 1]:
                foreign[0] = True
                return


@njit(nogil=True, cache=True)
def _count(table, counts, begin, end):
    taps, rows = table.shape
    base = np.int64(table.ctypes.data)
    for tile in range(begin, end):
        first, last = tile * TILE, min((tile + 1) * TILE, rows)
        whole = (last - first) // LANES * LANES
        for k in range(taps):
            n = count_valid(base + 4 * (k * rows + first), whole)
            for row in range(first + whole, last):
                n += table[k, row] >= 0
            counts[tile * taps + k + 1] = n


@njit(nogil=True, cache=True)
def _fill(table, offsets, source, slot, begin, end):
    taps, rows = table.shape
    base, limit = np.int64(table.ctypes.data), offsets[end * taps]
    # Vectors and loops without a branch write past the pairs of a tap, where the next tap's follow. At the end of
    # these tiles another thread's would: there the pairs go by way of a buffer.
    spare_source, spare_slot = np.empty(TILE + LANES, np.int32), np.empty(TILE + LANES, np.int16)
    for tile in range(begin, end):
        first, last = tile * TILE, min((tile + 1) * TILE, rows)
        whole = (last - first) // LANES * LANES if HAS_COMPRESS else 0
        for k in range(taps):
            at, after = offsets[tile * taps + k], offsets[tile * taps + k + 1]
            buffered = after + LANES > limit
            sources = spare_source if buffered else source[at : after + LANES]
            slots = spare_slot if buffered else slot[at : after + LANES]
            n = 0
            if HAS_COMPRESS:
                entries = base + 4 * (k * rows + first)
                n = compress_valid(entries, whole, np.int64(sources.ctypes.data), np.int64(slots.ctypes.data))
            for row in range(first + whole, last):
                entry = table[k, row]
                sources[n] = entry
                slots[n] = row - first
                n += entry >= 0
            if buffered:
                source[at:after] = sources[:n]
                slot[at:after] = slots[:n]
