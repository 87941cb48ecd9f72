"""Attention within segments of any small batch: equal to its reference, independent of order and of neighbours."""

from itertools import pairwise

import pytest
import torch

from common_kernels.varlen_attention import reference, varlen_attention

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import examples

LENGTHS = st.lists(st.integers(0, 70), max_size=5)


@settings(max_examples=examples(60), deadline=None)
@given(
    lengths=LENGTHS,
    longer=st.integers(-3, 20),
    groups=st.sampled_from([(1, 1), (4, 1), (6, 2), (3, 3)]),
    size=st.sampled_from([1, 5, 16, 32, 64, 96]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 80),
    bias=st.booleans(),
    importance=st.booleans() | st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference(lengths, longer, groups, size, causal, window, bias, importance, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths_k = [max(0, n + longer) for n in lengths]
    offsets, offsets_k = (torch.tensor([0, *each]).cumsum(0) for each in (lengths, lengths_k))
    heads, kv_heads = groups
    q = torch.randn(sum(lengths), heads, size, generator=generator)
    k, v = (torch.randn(sum(lengths_k), kv_heads, size, generator=generator) for _ in range(2))
    bias = torch.randn(len(k), generator=generator) if bias else None
    answer = varlen_attention(q, k, v, offsets, offsets_k=offsets_k, causal=causal, window=window, bias=bias,
                              importance=importance)  # fmt: skip
    out, sums = answer if importance else (answer, None)
    wide = [x.double() for x in (q, k, v)]
    expected, _ = reference.varlen_attention(*wide, offsets, offsets_k, causal, window, None, bias)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-6)
    if sums is not None:
        queries = None if importance is True else importance
        expected = reference.column_sums(*wide[:2], offsets, offsets_k, causal, window, None, bias, False, queries)
        torch.testing.assert_close(sums, expected, rtol=2e-5, atol=2e-5)


@settings(max_examples=examples(25), deadline=None)
@given(lengths=LENGTHS, order=st.randoms(use_true_random=False), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_order_of_the_batch_changes_no_bit(lengths, order, dtype):
    offsets = [0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()]
    rows = [torch.arange(a, b) for a, b in pairwise(offsets)]
    shuffled = list(range(len(lengths)))
    order.shuffle(shuffled)
    index = torch.cat([torch.arange(0), *(rows[s] for s in shuffled)])
    q, k, v = (torch.randn(offsets[-1], 2, 32).to(dtype) for _ in range(3))
    out, sums = varlen_attention(q, k, v, torch.tensor(offsets), importance=True)
    moved = torch.tensor([0, *(lengths[s] for s in shuffled)]).cumsum(0)
    other, other_sums = varlen_attention(q[index], k[index], v[index], moved, importance=True)
    assert torch.equal(out[index], other) and torch.equal(sums[index], other_sums)
