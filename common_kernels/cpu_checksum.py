"""Checksums of memory, at tens of gigabytes per second: whether a range of bytes is still what it was.

The range is cut into blocks of 256 bytes and these into eight stretches. A turn is one block of each stretch, so that
it is spread over the whole range; all turns together miss no byte.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from common_kernels.reach.cpu import bytes_at, words_at

_BLOCK = 256
_STRETCHES = 8
# What comes before the checksums of the blocks: the range's address, its bytes, its blocks, its turns.
_HEAD = 4
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def take_sums(address: int, n_bytes: int) -> tuple[np.ndarray, int]:
    """The checksums of `n_bytes` at an address, as `same_sums` takes them, and into how many turns they are cut."""
    blocks = -(-n_bytes // _BLOCK)
    turns = max(1, -(-blocks // _STRETCHES))
    record = np.empty(_HEAD + blocks, np.int64)
    record[:_HEAD] = address, n_bytes, blocks, turns
    _take(record.ctypes.data)
    return record, turns


@njit(nogil=True, cache=True)
def _take(record):
    head = words_at(record, _HEAD)
    sums = words_at(record + 8 * _HEAD, head[2])
    for block in range(len(sums)):
        sums[block] = _sum(np.int64(head[0]), np.int64(head[1]), block)


@njit(nogil=True, cache=True)
def same_sums(record, first, n):
    """Whether n turns from turn `first` on, up to the last, have the checksums of a record at an address."""
    head = words_at(record, _HEAD)
    address, n_bytes, blocks, turns = np.int64(head[0]), np.int64(head[1]), np.int64(head[2]), np.int64(head[3])
    sums = words_at(record + 8 * _HEAD, blocks)
    last = min(turns, first + n)
    for stretch in range(0, blocks, turns):
        for block in range(stretch + first, min(blocks, stretch + last)):
            if _sum(address, n_bytes, block) != sums[block]:
                return False
    return True


@njit(nogil=True, cache=True)
def _sum(address, n_bytes, block):
    begin = block * _BLOCK
    size = min(_BLOCK, n_bytes - begin)
    words = words_at(address + begin, size // 8)
    total = np.uint64(0)
    # The factors of a word depend on its place: words that change places, and signs that flip in pairs, show too.
    for i in range(len(words)):
        mixed = words[i] ^ (np.uint64(i + 1) * _ODD)
        total += (mixed & _LOW) * (mixed >> _HALF) + words[i]
    if size % 8:
        rest = bytes_at(address + begin + size // 8 * 8, size % 8)
        word = np.uint64(1)
        for i in range(len(rest)):
            word = (word << np.uint64(8)) | np.uint64(rest[i])
        total += word * _ODD
    return total
