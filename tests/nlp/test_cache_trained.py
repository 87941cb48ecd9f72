"""PrunedCache on the trained language model, which has what random ones lack: sinks, and something to look back for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nlp.cache import HeavyHitters, RandomTokens, Recent, SnapKV
from nlp.pretrained import load_pretrained, load_tokenizer
from nlp.training.text import held_out_texts
from nlp.training.train import tokens_of, windows

pytest.importorskip("transformers")
from nlp.cache import PrunedCache
from nlp.training import measure

NAME, PREFILL = "llama-python-docs", 384


@pytest.fixture(scope="module")
def model() -> Any:
    return load_pretrained(NAME)


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    return windows(tokens_of(load_tokenizer(NAME), held_out_texts()), 512)[:10]


def test_the_first_token_is_a_sink(model: Any, held_out: torch.Tensor) -> None:
    assert max(measure.first_token_mass(model, held_out[:4])) > 0.08  # a token's fair share is below 0.004
    hidden = measure.four_evicted(model, held_out, PREFILL, draws=2)
    assert hidden["first four"] - hidden["none"] > 4 * abs(hidden["random four"] - hidden["none"])


def test_evicting_sinks_hurts_and_protecting_them_helps(model: Any, held_out: torch.Tensor) -> None:
    """A random model passes with or without sinks."""
    for policy, heads in ((Recent(), "shared"), (RandomTokens(), "own")):
        kept, lost = (
            measure.after_eviction(model, held_out, PREFILL, policy, heads, 0.125, sinks)[0] for sinks in (4, 0)
        )
        assert lost > 1.05 * kept


def test_what_is_forgotten_is_missed_and_what_is_not_is_not(model: Any, held_out: torch.Tensor) -> None:
    whole = measure.perplexity(model, held_out)
    losses = []
    for keep in (1.0, 0.5, 0.125):
        perplexity, left = measure.after_eviction(model, held_out, PREFILL, SnapKV(window=16), "shared", keep, 4)
        assert left == keep
        losses.append(perplexity)
    assert losses == sorted(losses) and losses[2] > 1.1 * losses[0] and 0.5 * whole < losses[0] < 2 * whole


def test_heavy_hitters_find_the_sink_themselves(model: Any, held_out: torch.Tensor) -> None:
    cache = PrunedCache(model, HeavyHitters(), keep=0.125, sinks=0, recent=16)
    with torch.no_grad():
        model(input_ids=held_out[:2, :PREFILL], past_key_values=cache)
    assert any(int(cache.kept_positions(1, row, head)[0]) == 0 for row in range(2) for head in range(2))


def test_generates_the_same_text_where_nothing_is_evicted(model: Any) -> None:
    tokenizer = load_tokenizer(NAME)
    texts = [text[: 200 + 300 * i] for i, text in enumerate(held_out_texts()[:3])]
    inputs = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    settings: dict[str, Any] = dict(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=12, do_sample=False
    )
    want = model.generate(**settings)
    cache = PrunedCache(model, HeavyHitters(), keep=1.0, while_decoding=True)
    assert torch.equal(model.generate(**settings, past_key_values=cache), want)
    cache = PrunedCache(model, HeavyHitters(), keep=0.2, recent=8, while_decoding=True)
    model.generate(**settings, past_key_values=cache)
    assert cache.kept[3] == [[max(-(-n // 5), 12)] * 2 for n in cache.seen]
