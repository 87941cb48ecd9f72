"""Ragged storage against lists of rows."""

from __future__ import annotations

import pytest
import torch

from nlp.cache.segments import Segments, chance, smooth


def random_segments(counts: list[int], seed: int) -> tuple[Segments, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    keys = [torch.randn(n, 2, 4, generator=generator) for n in counts]
    flat = torch.cat([torch.empty(0, 2, 4), *keys])
    positions = torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(n) for n in counts)])
    return Segments(flat, flat * 2, positions, positions.float() / 7, list(counts)), keys


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([3, 3], [1, 1]),
        ([3, 0, 5], [1, 1, 1]),
        ([3, 2, 5], [0, 4, 1]),
        ([0, 0], [2, 1]),
        ([4, 1], [0, 0]),
        ([], []),
    ],
)
def test_append(old: list[int], new: list[int]) -> None:
    a, a_rows = random_segments(old, 0)
    b, b_rows = random_segments(new, 1)
    both = a.append(b)
    want = [torch.cat([x, y]) for x, y in zip(a_rows, b_rows)]
    assert both.counts == [len(x) for x in want]
    assert torch.equal(both.keys, torch.cat([torch.empty(0, 2, 4), *want]))
    assert torch.equal(both.values, both.keys * 2)
    assert both.positions.tolist() == [i for m, n in zip(old, new) for i in (*range(m), *range(n))]
    assert torch.equal(both.scores, both.positions.float() / 7)
    assert both.offsets().tolist() == [sum(both.counts[:i]) for i in range(len(want) + 1)]


def test_take_segments() -> None:
    a, rows = random_segments([3, 0, 5], 0)
    taken = a.take_segments([2, 2, 1, 0])
    assert taken.counts == [5, 5, 0, 3] and torch.equal(taken.keys, torch.cat([rows[2], rows[2], rows[1], rows[0]]))
    assert a.take_segments([]).counts == []


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("counts", [[6, 6, 6], [6, 1, 4]], ids=["even", "uneven"])
def test_one_query_per_segment(counts: list[int], importance: bool) -> None:
    """Even segments take another way than uneven ones; both are softmax(q k) v of each segment."""
    segments, rows = random_segments(counts, 0)
    q = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(2))
    out, received = segments.attend(q, [1, 1, 1], 0.7, None, importance)
    want, sums = [], []
    for i, keys in enumerate(rows):
        k = keys.repeat_interleave(3, 1).double()
        p = torch.einsum("hd,jhd->hj", q[i].double(), k).mul(0.7).softmax(-1)
        want.append(torch.einsum("hj,jhd->hd", p, 2 * k))
        sums.append(p.sum(0))
    torch.testing.assert_close(out, torch.stack(want).float(), atol=1e-6, rtol=1e-5)
    if importance:
        assert received is not None
        torch.testing.assert_close(received, torch.cat(sums).float(), atol=1e-6, rtol=1e-5)
    else:
        assert received is None


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
def test_smooth_stays_within_segments(kernel: int) -> None:
    counts = [4, 0, 1, 7]
    scores = torch.rand(12, generator=torch.Generator().manual_seed(0))
    want = []
    for part in scores.split(counts):
        for j in range(len(part)):
            want.append(sum(float(part[i]) for i in range(len(part)) if abs(i - j) <= kernel // 2) / kernel)
    torch.testing.assert_close(smooth(scores, counts, kernel), torch.tensor(want))
    assert smooth(torch.empty(0), [0, 0], kernel).tolist() == []


def test_chance_is_even_and_depends_on_all_its_arguments() -> None:
    positions = torch.arange(20_000)
    zeros = torch.zeros_like(positions)
    draws = [chance(positions, zeros, 0), chance(positions, zeros + 1, 0), chance(positions, zeros, 1)]
    for x in draws:
        assert 0 <= float(x.min()) and float(x.max()) < 1
        assert torch.histc(x, 10, 0, 1).sub(2000).abs().max() < 200
    correlations = torch.corrcoef(torch.stack([*draws, draws[0].roll(1)])) - torch.eye(4)
    assert correlations.abs().max() < 0.03
    assert torch.equal(chance(positions[5:9], zeros[5:9], 0), draws[0][5:9])
