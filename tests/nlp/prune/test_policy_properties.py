"""What every plan must be, whatever the scores, lengths and arguments."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from nlp.prune import Cascade, First, Live, Mass, Merge, Policy, Random, Threshold
from nlp.prune.removal import protected
from tests.fuzz import examples

SHARE = st.floats(0.01, 1)
POLICIES = st.one_of(
    st.builds(Cascade, SHARE, min_tokens=st.integers(1, 12)),
    st.builds(Random, SHARE, seed=st.integers(0, 9), min_tokens=st.integers(1, 12)),
    st.builds(First, SHARE, min_tokens=st.integers(1, 12)),
    st.builds(Threshold, st.floats(0, 3), min_tokens=st.integers(1, 12)),
    st.builds(Mass, SHARE, min_tokens=st.integers(1, 12)),
    st.builds(Merge, SHARE, min_tokens=st.integers(1, 12)),
)
NAMES = st.sampled_from([(), ("cls",), ("sep",), ("sinks:4", "recent:3"), ("cls", "recent:20")])


def live(lengths: list[int], names: tuple[str, ...], seed: int, only: int | None = None) -> Live:
    """Tokens whose scores, with ties, and keys are those of their sequence's number; of one sequence if `only`."""
    parts = []
    for number, n in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed * 100 + number)
        parts.append((torch.randint(0, 6, (n,), generator=generator) / 4, torch.randn(n, 3, generator=generator)))
    chosen = range(len(lengths)) if only is None else [only]
    score = torch.cat([parts[i][0] for i in chosen])
    keys = torch.cat([parts[i][1] for i in chosen])
    own = [lengths[i] for i in chosen]
    offsets = torch.tensor([0, *own]).cumsum(0)
    column = torch.arange(int(offsets[-1]))
    stay = protected(names, offsets)
    return Live(1, 2, offsets, torch.tensor(own), keys, score, score, keys, None, stay, column, False)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), POLICIES, NAMES, st.integers(0, 50))
def test_plans(lengths: list[int], policy: Policy, names: tuple[str, ...], seed: int) -> None:
    sample = live(lengths, names, seed)
    plan = policy.plan(sample)
    everyone = sample.column
    index = everyone if plan is None else plan.index
    offsets = sample.offsets if plan is None else plan.offsets
    target = everyone if plan is None else plan.target
    assert bool((index.diff() > 0).all()) and len(offsets) == len(lengths) + 1 and offsets[-1] == len(index)
    stays = torch.zeros(len(everyone), dtype=torch.bool)
    stays[index] = True
    assert bool(stays[sample.protected].all())
    assert torch.equal(sample.count(stays), offsets.diff())
    for number, n in enumerate(lengths):
        a, b = sample.offsets[number : number + 2].tolist()
        left = int(stays[a:b].sum())
        assert left >= min(n, 1)
        if n < policy.min_tokens:
            assert left == n
        elif isinstance(policy, (Cascade, Random, First)):
            wanted = max(1, int(sample.protected[a:b].sum()), math.ceil(policy.shares(2)[1] * n - 1e-9))
            assert left == min(wanted, n)
        if isinstance(policy, Merge):
            assert 2 * left >= n
        # The same alone.
        own = live(lengths, names, seed, number)
        plan_alone = policy.plan(own) if n else None
        alone = own.column if plan_alone is None else plan_alone.index
        assert alone.tolist() == (stays[a:b].nonzero()[:, 0]).tolist()
    if target is not None:
        assert torch.equal(target[index], torch.arange(len(index)))
        assert torch.equal(sample.sequence()[index][target], sample.sequence())
