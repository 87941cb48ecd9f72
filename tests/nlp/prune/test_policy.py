"""Plans of the policies on tokens written down by hand, or drawn, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nlp.prune import Cascade, First, Live, Mass, Merge, Plan, Policy, Random, Threshold, mean_pool
from nlp.prune.merge import most_similar, most_similar_padded
from nlp.prune.removal import protected


def live(
    lengths: list[int], score: Tensor | None = None, keys: Tensor | None = None, names: tuple[str, ...] = ("cls",),
    layer: int = 1, original: list[int] | None = None,
) -> Live:  # fmt: skip
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    n = int(offsets[-1])
    return Live(
        layer, 2, offsets, torch.tensor(original or lengths), torch.zeros(n, 1), score, score, keys, None,
        protected(names, offsets), torch.arange(n), False,
    )  # fmt: skip


def rows(plan: Plan | None, lengths: list[int]) -> list[list[int]]:
    """The places of the tokens of each sequence that stay."""
    if plan is None:
        return [list(range(n)) for n in lengths]
    assert plan.index.dtype == plan.offsets.dtype == torch.int64
    begin = torch.tensor([0, *lengths]).cumsum(0).tolist()
    ends = plan.offsets.tolist()
    return [(plan.index[a:b] - start).tolist() for a, b, start in zip(ends, ends[1:], begin)]


SCORE = torch.tensor([0.1, 5, 1, 1, 0.5, 0.2, 0.1, 3, 3])
LENGTHS = [5, 0, 2, 2]


@pytest.mark.parametrize(
    ("policy", "want"),
    [
        (Cascade(0.5, min_tokens=1), [[0, 1, 2], [], [0], [0]]),
        (Cascade(0.5, min_tokens=1, accumulate=True), [[0, 1, 2], [], [0], [0]]),
        (Cascade(0.61, min_tokens=1), [[0, 1, 2, 3], [], [0, 1], [0, 1]]),
        (Cascade(0.6, min_tokens=1), [[0, 1, 2], [], [0, 1], [0, 1]]),
        (Cascade(0.01, min_tokens=1), [[0], [], [0], [0]]),
        (Cascade(0.2, min_tokens=3), [[0], [], [0, 1], [0, 1]]),
        (Threshold(1.0, min_tokens=1), [[0, 1], [], [0], [0]]),
        (Threshold([0, 0.6], min_tokens=1), [[0, 1, 2, 3], [], [0, 1], [0, 1]]),
        (Threshold(9.0, min_tokens=1), [[0], [], [0], [0]]),
        (Mass(0.8, min_tokens=1), [[0, 1, 2], [], [0, 1], [0, 1]]),
        (Mass(0.5, min_tokens=1), [[0, 1], [], [0], [0]]),
        (Mass([1, 0.99], min_tokens=5), [[0, 1, 2, 3, 4], [], [0, 1], [0, 1]]),
        (First(0.5, min_tokens=1), [[0, 1, 2], [], [0], [0]]),
        (First(0.5, min_tokens=3), [[0, 1, 2], [], [0, 1], [0, 1]]),
    ],
)
def test_who_stays(policy: Policy, want: list[list[int]]) -> None:
    assert rows(policy.plan(live(LENGTHS, SCORE)), LENGTHS) == want


def test_without_protection_the_best_one_stays() -> None:
    sample = live(LENGTHS, SCORE, names=())
    for policy in (Threshold(50.0, min_tokens=1), Cascade(0.01, min_tokens=1), Mass(0.01, min_tokens=1)):
        assert rows(policy.plan(sample), LENGTHS) == [[1], [], [0], [0]]


def test_shares_are_of_the_original_length() -> None:
    sample = live([5, 4], torch.arange(9.0), original=[10, 4])
    assert rows(Cascade(0.3, min_tokens=1).plan(sample), [5, 4]) == [[0, 3, 4], [0, 3]]
    assert rows(Cascade(0.3, min_tokens=5).plan(sample), [5, 4]) == [[0, 3, 4], [0, 1, 2, 3]]
    assert Cascade(0.5, min_tokens=1).plan(live([5], torch.arange(5.0), original=[10])) is None


def test_names_of_protected_tokens() -> None:
    offsets = torch.tensor([0, 6, 7, 7, 9])
    for names, want in [
        (("cls",), [0, 6, 7]), (("sep",), [5, 6, 8]), (("cls", "sep"), [0, 5, 6, 7, 8]), ((), []),
        (("sinks:2",), [0, 1, 6, 7, 8]), (("sinks:1", "recent:2"), [0, 4, 5, 6, 7, 8]),
    ]:  # fmt: skip
        assert protected(names, offsets).nonzero()[:, 0].tolist() == want
    assert Cascade(protect=["sinks:12", "sep"]).protect == ("sinks:12", "sep")
    assert Cascade(protect="cls").protect == ("cls",)


def test_random_is_a_fair_draw_of_its_own() -> None:
    seen = torch.zeros(100)
    chosen = set()
    for seed in range(400):
        plan = Random(0.3, seed=seed).plan(live([100], names=()))
        assert plan is not None and len(plan.index) == 30
        seen[plan.index] += 1
        chosen.add(tuple(plan.index.tolist()))
    assert len(chosen) == 400
    # 400 draws of probability 0.3: standard deviation 9.2.
    assert 80 < seen.min() and seen.max() < 160
    policy = Random(0.3, seed=5)
    alone = rows(policy.plan(live([100])), [100])[0]
    batch = rows(policy.plan(live([70, 100, 0, 100])), [70, 100, 0, 100])
    assert batch[1] == batch[3] == alone != batch[0]


def test_merge_by_hand() -> None:
    # Of six free tokens 1, 3 and 5 receive; 2 is nearest to 5, 4 to 1, 6 to 3; 4 and 6 are the most similar pairs.
    keys = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0.2, 1], [0, 1, 0], [2, 0.1, 0], [0, 0, 1], [0, 3, 0.1]])
    for keep, stays, target in [
        (6 / 7, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 3]),
        (5 / 7, [0, 1, 2, 3, 5], [0, 1, 2, 3, 1, 4, 3]),
        (4 / 7, [0, 1, 3, 5], [0, 1, 3, 2, 1, 3, 2]),
        (1 / 7, [0, 1, 3, 5], [0, 1, 3, 2, 1, 3, 2]),
    ]:
        plan = Merge(keep, min_tokens=1).plan(live([7], keys=keys))
        assert plan is not None and plan.target is not None
        assert plan.index.tolist() == stays and plan.offsets.tolist() == [0, len(stays)]
        assert plan.target.tolist() == target
    assert Merge(0.5, min_tokens=8).plan(live([7], keys=keys)) is None
    both = Merge(5 / 7, min_tokens=1).plan(live([7, 1, 0, 7], keys=torch.cat([keys, keys[:1], keys])))
    assert both is not None and both.target is not None
    assert both.target.tolist() == [0, 1, 2, 3, 1, 4, 3, 5, 6, 7, 8, 9, 7, 10, 9]
    assert both.offsets.tolist() == [0, 5, 6, 6, 11]


def test_products_of_padded_sequences() -> None:
    n_a, n_b = torch.tensor([3, 0, 7, 0, 1]), torch.tensor([3, 1, 8, 0, 2])
    a, b = torch.randn(11, 5), torch.randn(14, 5)
    got, want = most_similar_padded(a, b, n_a, n_b), most_similar(a, b, n_a, n_b)
    torch.testing.assert_close(got[0], want[0])
    assert torch.equal(got[1], want[1])
    sequence = torch.repeat_interleave(torch.arange(5), n_b)
    assert torch.equal(sequence[want[1]], torch.repeat_interleave(torch.arange(5), n_a))
    torch.testing.assert_close((a * b[want[1]]).sum(1), want[0])
    for n in (0, 2):
        none = torch.zeros(n, dtype=torch.int64)
        assert [len(x) for x in most_similar_padded(a[:0], b[:0], none, none)] == [0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cascade(0), "keep must lie above 0 and be at most 1, got 0"),
        (lambda: Cascade(1.5), "keep must lie above 0 and be at most 1, got 1.5"),
        (lambda: Cascade(float("nan")), "keep must lie above 0"),
        (lambda: Cascade("half"), "keep must be a share, or one share for each layer, got 'half'"),
        (lambda: Cascade(True), "keep must be a share, or one share for each layer, got True"),
        (lambda: Cascade([]), "keep must be a share, or one share for each layer"),
        (lambda: Cascade([1, "a"]), "keep must hold shares"),
        (lambda: Cascade([0.9, 0.8]), "keep must begin with 1 .* and never rise"),
        (lambda: Cascade([1, 0.5, 0.6]), "never rise"),
        (lambda: Cascade(0.5, layers="all"), "layers must be 'auto' or numbers of layers, got 'all'"),
        (lambda: Cascade(0.5, layers=[]), "layers must be 'auto' or numbers"),
        (lambda: Cascade(0.5, layers=[0]), r"layers must be rising numbers of layers, from 1, got \[0\]"),
        (lambda: Cascade(0.5, layers=[2, 2]), "layers must be rising numbers"),
        (lambda: Cascade([1, 0.5], layers=[1]), "layers must be 'auto' where keep names a share for each layer"),
        (lambda: Cascade(score="cls"), "score must be 'exact' or 'strided:N', .* got 'cls'"),
        (lambda: Cascade(score="strided:0"), "got 'strided:0'"),
        (lambda: Cascade(accumulate=1), "accumulate must be True or False, got 1"),
        (lambda: Cascade(protect=("cls", "eos")), "protect must name cls, sep, sinks:N or recent:N, got 'eos'"),
        (lambda: Cascade(protect=("sinks",)), "got 'sinks'"),
        (lambda: Cascade(protect=("recent:0",)), "got 'recent:0'"),
        (lambda: Cascade(protect=("cls:2",)), "got 'cls:2'"),
        (lambda: Cascade(protect=(3,)), "got 3"),
        (lambda: Cascade(protect=3), "protect must be names such as .*, got 3"),
        (lambda: Merge(min_tokens=-1), "min_tokens must be a whole number of at least 0, got -1"),
        (lambda: First(min_tokens=2.0), "min_tokens must be a whole number of at least 0, got 2.0"),
        (lambda: Random(seed=-1), "seed must be a whole number of 31 bits, got -1"),
        (lambda: Threshold(-1), "theta must be a number of at least 0, or one for each layer, got -1"),
        (lambda: Threshold([0.1, 0.2]), "theta must be 0 for the first layer"),
        (lambda: Threshold([]), "theta must be 0 for the first layer"),
        (lambda: Threshold(float("inf")), "theta must be a number of at least 0"),
        (lambda: Threshold(score="half"), "score must be 'exact'"),
        (lambda: Mass(0), r"p must be a number in \(0, 1\], or one for each layer, got 0"),
        (lambda: Mass(1.01), "p must be a number in"),
        (lambda: Mass([0.9, 0.9]), "p must be 1 for the first layer"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class _Output:
    def __init__(self, hidden: Tensor, kept: Tensor | None = None) -> None:
        self.last_hidden_state = hidden
        if kept is not None:
            self.kept = kept


def test_mean_pool() -> None:
    hidden = torch.tensor([[[1.0, 2], [3, 4], [0, 0]], [[9, 9], [5, 7], [1, 1]], [[0, 0], [0, 0], [0, 0]]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]])
    # Zeros are states where nobody left.
    want = torch.tensor([[4 / 3, 2], [3, 4], [0, 0]])
    torch.testing.assert_close(mean_pool(_Output(hidden), mask), want)
    torch.testing.assert_close(mean_pool(_Output(hidden, torch.tensor([[3, 2, 0]])), mask), want)
    kept = torch.tensor([[3, 2, 0], [2, 2, 0]])
    got = mean_pool(_Output(hidden.bfloat16(), kept), mask)
    torch.testing.assert_close(got, torch.tensor([[2, 3], [3, 4], [0, 0.0]]))
    with pytest.raises(ValueError, match="output must have last_hidden_state"):
        mean_pool(object(), mask)
    with pytest.raises(ValueError, match=r"attention_mask must be \[3, 3\] \[B, S\], got \[2, 3\]"):
        mean_pool(_Output(hidden), mask[:2])
