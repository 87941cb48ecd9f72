"""Checksums: every byte counts, wherever it lies; all turns together miss none."""

from __future__ import annotations

import numpy as np
import pytest

from common_kernels.cpu_checksum import same_sums, take_sums


def _same(record: np.ndarray, first: int, n: int) -> bool:
    return bool(same_sums(record.ctypes.data, first, n))


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 7, 8, 9, 254, 256, 258, 2047, 2048, 2050, 9000, 40006])
def test_every_byte_belongs_to_one_turn(n_bytes: int) -> None:
    memory = np.random.default_rng(0).integers(0, 256, n_bytes + 1, dtype=np.uint8)
    record, turns = take_sums(memory.ctypes.data, n_bytes)
    assert turns == max(1, -(-n_bytes // 2048))
    memory[n_bytes] ^= 255  # beyond the range
    assert _same(record, 0, turns) and _same(record, 0, turns + 5)
    for at in {*range(0, n_bytes, 97), *range(max(0, n_bytes - 9), n_bytes)}:
        memory[at] ^= 1
        assert not _same(record, 0, turns)
        assert sum(not _same(record, turn, 1) for turn in range(turns)) == 1
        memory[at] ^= 1
    assert _same(record, 0, turns)


@pytest.mark.parametrize(
    "edit",
    [
        lambda w: np.copyto(w, w[::-1].copy()),
        lambda w: np.copyto(w, np.roll(w, 1)),
        lambda w: np.negative(w, out=w),
        lambda w: w.__setitem__(slice(0, 2), w[1::-1].copy()),
        lambda w: w.fill(0),
    ],
    ids=["reversed", "rolled", "negated", "two swapped", "zeroed"],
)
def test_orders_and_signs_count(edit: object) -> None:
    weights = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    record, turns = take_sums(weights.ctypes.data, weights.nbytes)
    assert _same(record, 0, turns)
    edit(weights)  # type: ignore[operator]
    assert not _same(record, 0, turns)


def test_a_turn_is_spread_over_the_range() -> None:
    weights = np.ones(80_000, np.float32)
    record, turns = take_sums(weights.ctypes.data, weights.nbytes)
    weights[20_000:31_000] = 2  # an eighth, and a bit
    assert all(not _same(record, turn, 1) for turn in range(turns))
