"""PrunedCache refuses what it cannot do, in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nlp.cache import HeavyHitters, RandomTokens, Recent, SnapKV
from nlp.cache.policies import Budget
from tests.nlp import tiny_causal
from tests.nlp.tiny_causal import generate, prompts

transformers = pytest.importorskip("transformers")
from nlp.cache import PrunedCache  # noqa: E402


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_causal.build("llama")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(), "either keep or tokens"),
        (dict(keep=0.5, tokens=20), "either keep or tokens"),
        (dict(keep=0.0), r"keep must lie in \(0, 1\], got 0.0"),
        (dict(keep=1.5), "keep must lie in"),
        (dict(keep=float("nan")), "keep must lie in"),
        (dict(keep=True), "keep must lie in"),
        (dict(tokens=0), "tokens must be a whole number of at least 1"),
        (dict(tokens=2.5), "tokens must be a whole number"),
        (dict(tokens=10, sinks=4, recent=8), "at least sinks . recent, 4 . 8"),
        (dict(keep=0.5, sinks=-1), "sinks must be a whole number of at least 0"),
        (dict(keep=0.5, recent=1.0), "recent must be a whole number"),
        (dict(keep=0.5, heads="poled"), "did you mean 'pooled'"),
    ],
)
def test_arguments(llama: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrunedCache(llama, HeavyHitters(), **settings)


def test_policies(llama: Any) -> None:
    with pytest.raises(ValueError, match="kernel must be odd, got 4"):
        SnapKV(kernel=4)
    with pytest.raises(ValueError, match="window must be a whole number of at least 1"):
        SnapKV(window=0)
    with pytest.raises(TypeError, match="policy must be one of SnapKV, HeavyHitters, Recent, RandomTokens, got str"):
        PrunedCache(llama, "snapkv", keep=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="SnapKV votes on a prompt"):
        PrunedCache(llama, SnapKV(), keep=0.5, while_decoding=True)
    with pytest.raises(ValueError, match="recent must be at least SnapKV's window of 32"):
        PrunedCache(llama, SnapKV(), keep=0.5, recent=8)


def test_models(llama: Any) -> None:
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, add_cross_attention=True)
    with pytest.raises(ValueError, match="no cross-attention"):
        PrunedCache(transformers.GPT2LMHeadModel(config), Recent(), keep=0.5)
    tiny = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(ValueError, match=r"gpt2, llama, mistral, qwen2, qwen3, got BertModel \(bert\)"):
        PrunedCache(transformers.BertModel(transformers.BertConfig(**tiny)), Recent(), keep=0.5)
    with pytest.raises(ValueError, match="got Linear"):
        PrunedCache(torch.nn.Linear(2, 2), Recent(), keep=0.5)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, reorder_and_upcast_attn=True)
    )
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="reorder_and_upcast_attn"):
        PrunedCache(model, Recent(), keep=0.5)
    other = tiny_causal.build("llama")
    other.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="sdpa or eager, got 'flex_attention'"):
        PrunedCache(other, Recent(), keep=0.5)


def test_tokens_cannot_be_taken_back(llama: Any) -> None:
    ids = prompts()[0][2:3]
    cache = PrunedCache(llama, Recent(), tokens=50)
    generate(llama, ids, past_key_values=cache)
    cache.crop(0)
    with pytest.raises(ValueError, match="PrunedCache cannot be cropped: tokens that were evicted are gone"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="PrunedCache cannot be cropped: tokens that were evicted are gone"):
        generate(llama, ids, past_key_values=PrunedCache(llama, Recent(), tokens=50), prompt_lookup_num_tokens=2)


def test_misuse(llama: Any) -> None:
    ids, mask = prompts()
    cache = PrunedCache(llama, Recent(), tokens=50)
    square = torch.ones(4, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"attention_mask must be None or \[B, S\]"):
            llama(input_ids=ids, attention_mask=square, past_key_values=cache)
        cache.reset()
        with pytest.raises(ValueError, match="output_attentions=False"):
            llama(input_ids=ids, past_key_values=cache, output_attentions=True)
        cache.reset()
        llama(input_ids=ids, attention_mask=mask, past_key_values=cache)
        with pytest.raises(ValueError, match=r"keys must be \[4, 2, S, D\]"):
            llama(input_ids=ids[:2], past_key_values=cache)
        with pytest.raises(ValueError, match="row and head"):
            cache.kept_positions(0, 4, 0)
        with pytest.raises(ValueError, match="layer must lie"):
            cache.kept_positions(3, 0, 0)
        other = tiny_causal.build("llama")
        cache = PrunedCache(llama, Recent(), tokens=50)
        other(input_ids=ids, past_key_values=cache)  # attends to these very tokens: still right
        with pytest.raises(RuntimeError, match="was made for another model"):
            other(input_ids=ids, past_key_values=cache)


def test_dropout_is_refused() -> None:
    model = tiny_causal.build("gpt2").train()
    with pytest.raises(ValueError, match="call model.eval"):
        model(input_ids=prompts()[0], past_key_values=PrunedCache(model, Recent(), keep=0.5))


def test_chunks_past_a_sliding_window_after_an_eviction() -> None:
    model = tiny_causal.build("mistral-sliding")
    ids = prompts()[0][2:3]
    cache = PrunedCache(model, RandomTokens(), tokens=8)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
        with pytest.raises(ValueError, match="sliding window of 16 tokens, got 2"):
            model(input_ids=ids[:, :2], past_key_values=cache)


@pytest.mark.parametrize("n", [0, 1, 5, 36, 37, 100, 1000])
def test_budget(n: int) -> None:
    assert Budget(0.1, None, 4, 32).of(n) == min(n, max(-(-n // 10), 36))
    assert Budget(None, 40, 4, 32).of(n) == min(n, 40)
