"""Checksums of memory, at tens of gigabytes per second: whether a range of bytes is still what it was.

The range is cut into blocks of a kilobyte, which are dealt out to turns: block b belongs to turn b modulo the number of
turns. So each turn is spread over the whole range, and all turns together miss no byte.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from common_kernels.reach.cpu import bytes_at, words_at

_BLOCK = 1024
_BLOCKS_PER_TURN = 16
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def turns_of(n_bytes: int) -> int:
    """In how many turns of 16 KiB `n_bytes` are checked; at least one."""
    return max(1, -(-n_bytes // (_BLOCK * _BLOCKS_PER_TURN)))


@njit(nogil=True, cache=True)
def take_sums(address, n_bytes, sums, turns):
    """Write the checksum of every turn to the address of `turns` uint64."""
    out = words_at(sums, turns)
    for turn in range(turns):
        out[turn] = _sum_turn(address, n_bytes, turn, turns)


@njit(nogil=True, cache=True)
def same_sums(address, n_bytes, sums, turns, first, n):
    """Whether n turns from turn `first` on, round the end, still have the checksums at the address `sums`."""
    known = words_at(sums, turns)
    for i in range(first, first + n):
        turn = i % turns
        if _sum_turn(address, n_bytes, turn, turns) != known[turn]:
            return False
    return True


@njit(nogil=True, cache=True)
def _sum_turn(address, n_bytes, turn, turns):
    total = np.uint64(0)
    for block in range(turn, -(-n_bytes // _BLOCK), turns):
        begin = block * _BLOCK
        size = min(_BLOCK, n_bytes - begin)
        words = words_at(address + begin, size // 8)
        key = np.uint64(begin) * _ODD
        # The factors of a word depend on its place: words that change places, and signs that flip in pairs, show too.
        for i in range(len(words)):
            mixed = words[i] ^ (key + np.uint64(i) * _ODD)
            total += (mixed & _LOW) * (mixed >> _HALF) + words[i]
        if size % 8:
            rest = bytes_at(address + begin + size // 8 * 8, size % 8)
            word = np.uint64(size % 8)
            for i in range(len(rest)):
                word = (word << np.uint64(8)) | np.uint64(rest[i])
            total += word * _ODD
    return total
