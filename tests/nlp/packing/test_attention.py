"""The attention that packed passes run: biases by distance, what it hands over, and where it stands back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nlp.accelerate import accelerate
from nlp.packing import attention
from nlp.packing.passes import RUNNING, Batch, Pass, batch_of
from tests.nlp.tiny_models import network, padded, padding_id

pytest.importorskip("transformers", minversion="5")


def run(batch: Batch | None, *args: Any, **kwargs: Any) -> Tensor:
    """The attention within a pass of `batch`."""
    token = RUNNING.set((Pass(None, batch),))
    try:
        out, matrix = attention.attention(*args, **kwargs)
    finally:
        RUNNING.reset(token)
    assert matrix is None
    return out


def batch_of_lengths(lengths: list[int]) -> Batch:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return batch_of((len(lengths), max(lengths)), mask, torch.device("cpu"))


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float, score_bias: Tensor) -> Tensor:
    """Softmax attention of one sequence [H, n, D] in float64."""
    weights = (q.double() @ k.double().transpose(1, 2) * scale + score_bias.double()).softmax(-1)
    return weights @ v.double()


@pytest.mark.parametrize("spare", [0, 4])
def test_a_bias_by_distance(spare: int) -> None:
    lengths = [3, 1, 0, 8]
    longest = 8 + spare
    q, k, v = torch.randn(3, 1, 2, 12, 16).unbind(0)
    table = torch.randn(2, 2 * longest - 1)
    got = run(batch_of_lengths(lengths), None, q, k, v, None, scaling=0.5, position_bias=table)
    assert got.shape == (1, 12, 2, 16)
    a = 0
    for n in lengths:
        bias = torch.zeros(2, n, n)
        for i in range(n):
            for j in range(n):
                bias[:, i, j] = table[:, longest - 1 + j - i]
        rows = slice(a, a + n)
        want = dense(q[0, :, rows], k[0, :, rows], v[0, :, rows], 0.5, bias)
        torch.testing.assert_close(got[0, rows].transpose(0, 1).double(), want, rtol=0, atol=1e-5)
        a += n


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_sequences_causality_and_windows(causal: bool, window: int | None) -> None:
    lengths = [5, 2, 0, 7]
    q = torch.randn(1, 4, 14, 16)
    k, v = torch.randn(2, 1, 2, 14, 16).unbind(0)
    # The layer's own word comes first, then the call's.
    got = run(batch_of_lengths(lengths), SimpleNamespace(is_causal=causal), q, k, v, None, sliding_window=window)
    again = run(batch_of_lengths(lengths), SimpleNamespace(), q, k, v, None, is_causal=causal, sliding_window=window)
    assert torch.equal(got, again)
    a = 0
    for n in lengths:
        i, j = torch.arange(n)[:, None], torch.arange(n)
        hidden = (j > i) & causal
        if window is not None:
            hidden |= (i - j).abs() >= window
        rows = slice(a, a + n)
        keys, values = (x[0, :, rows].repeat_interleave(2, 0) for x in (k, v))
        want = dense(q[0, :, rows], keys, values, 0.25, torch.zeros(n, n).masked_fill(hidden, float("-inf")))
        torch.testing.assert_close(got[0, rows].transpose(0, 1).double(), want, rtol=0, atol=1e-5)
        a += n


def test_outside_of_packed_passes_it_is_sdpa() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import eager_mask, sdpa_mask

    q, k, v = torch.randn(3, 2, 4, 6, 8).unbind(0)
    hidden = torch.randn(2, 1, 6, 6)
    module = SimpleNamespace(is_causal=False)
    for batch in (None, RUNNING):
        got = attention.attention(module, q, k, v, hidden)[0] if batch else run(None, module, q, k, v, hidden)
        assert torch.equal(got, sdpa_attention_forward(module, q, k, v, hidden)[0])
    shape = dict(batch_size=2, q_length=3, kv_length=3)
    assert torch.equal(
        attention.mask(**shape, allow_is_causal_skip=False), sdpa_mask(**shape, allow_is_causal_skip=False)
    )
    assert torch.equal(attention.additive_mask(**shape), eager_mask(**shape))
    token = RUNNING.set((Pass(None, batch_of_lengths([3])),))
    try:
        assert attention.mask(**shape) is None and attention.additive_mask(**shape) is None
    finally:
        RUNNING.reset(token)


def test_registering_twice_changes_nothing() -> None:
    from transformers import AttentionInterface

    attention.register()
    before = AttentionInterface()[attention.NAME]
    attention.register()
    assert AttentionInterface()[attention.NAME] is before is attention.attention


@pytest.mark.parametrize("model_type", ["t5", "mpnet"])
def test_no_matrix_of_the_packed_length_is_ever_made(model_type: str) -> None:
    """Many long sequences: nothing as large as tokens times tokens, nor heads times length times length."""
    model = network(model_type)
    fast = accelerate(model)
    batch = padded((200,) * 8 + (150,), padding=padding_id(model))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(each, Tensor) and not each.is_mkldnn:  # reordered weights have no storage to ask
                    largest = max(largest, each.untyped_storage().nbytes() // each.element_size())
            return out

    with torch.inference_mode(), Watch():
        fast(**batch)
    tokens = 8 * 200 + 150
    assert 9 * 200 * 32 <= largest <= tokens * 64  # the feed-forward rows are the largest
    assert largest < 4 * 200 * 200
