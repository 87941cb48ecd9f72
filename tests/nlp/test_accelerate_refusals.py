"""What accelerated networks refuse, and in which words."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nlp.accelerate import accelerate, packed
from nlp.packing import in_flight
from nlp.prune import Cascade, First
from nlp.prune.policy import Live, Plan, Policy
from tests.nlp.tiny_models import CONFIGS, network, padded, padding_id

transformers = pytest.importorskip("transformers", minversion="5")


@dataclass(frozen=True)
class Everyone(Policy):
    """Keeps all tokens."""

    min_tokens: int = 1
    protect: tuple[str, ...] | None = None

    def plan(self, live: Live) -> Plan | None:
        return None


def message(error: type[Exception], model: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        accelerate(model, *args, **kwargs)
    return str(caught.value)


def test_what_is_no_network_of_hugging_face() -> None:
    words = "model must be a Hugging Face network with a config, got "
    assert message(TypeError, nn.Linear(2, 2)) == words + "Linear"
    assert message(TypeError, "bert-base-uncased") == words + "str"
    assert message(TypeError, None) == words + "NoneType"
    assert message(TypeError, SimpleNamespace(config=SimpleNamespace(model_type="bert"))) == words + "SimpleNamespace"


def test_unknown_architectures() -> None:
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    model = transformers.RemBertModel(transformers.RemBertConfig(**small, input_embedding_size=8))
    text = message(ValueError, model)
    assert text.startswith("model_type must be one of albert, arcee, bert, bert-generation, camembert, cohere, ")
    assert text.endswith(", got 'rembert'; did you mean 'camembert' or 'bert' or 'roberta'?")
    text = message(ValueError, transformers.DebertaV2Model(transformers.DebertaV2Config(**small)))
    assert text.endswith(
        "got 'deberta-v2': its attention is written out in its own code, where packed rows cannot be handed in"
    )


def test_decoders_with_cross_attention() -> None:
    model = network("bert", is_decoder=True, add_cross_attention=True)
    assert message(ValueError, model) == (
        "model must not have cross-attention layers (config.add_cross_attention is set)"
    )
    decoder = transformers.T5ForConditionalGeneration(transformers.T5Config(**CONFIGS["t5"])).get_decoder()
    assert "packing serves T5's encoder, got a decoder alone" in message(ValueError, decoder)


def test_accelerating_twice() -> None:
    model = network("bert", "ForMaskedLM")
    fast = accelerate(model)
    words = "model must not be accelerated already: "
    assert message(ValueError, fast) == words + "restore(model) gives the original"
    within = words + "a part of it is, or it runs within nlp.packed"
    assert message(ValueError, fast.bert) == within
    for again in (fast, fast.bert):
        with pytest.raises(ValueError, match=f"^{words}"), packed(again):
            pass
    with packed(model):
        for again in (model, model.bert):
            assert message(ValueError, again) == within
            with pytest.raises(ValueError, match="^model must not be accelerated"), packed(again):
                pass
    accelerate(model)


def test_arguments() -> None:
    model = network("bert")
    assert message(TypeError, model, prune=0.5) == "prune must be a policy such as nlp.Cascade, or None, got float"
    assert message(TypeError, model, dtype=16) == "dtype must be None, a name or a torch dtype, got int"
    assert message(ValueError, model, dtype="bf61") == (
        "dtype must be None, auto, fp32, bf16, fp16, fp64 or a torch dtype, got 'bf61'; did you mean 'bf16'?"
    )
    for dtype, name in (("int8", "int8"), (torch.int8, "int8"), (torch.complex64, "complex64")):
        assert message(ValueError, model, dtype=dtype) == (
            f"dtype must be one that this network can compute in (fp32, bf16, fp16, fp64), got {name}"
        )
    with pytest.raises(TypeError, match="positional"):
        accelerate(model, Everyone())  # type: ignore[misc]
    assert message(ValueError, model, task="mean") == "task must be one of auto, pool, cls, token, got 'mean'"
    tagger = network("bert", "ForTokenClassification")
    assert message(ValueError, tagger, prune=Everyone(), task="pool") == (
        "task must be 'token' for BertForTokenClassification, whose head reads every token, got 'pool'"
    )
    for name in ("t5", "mpnet"):
        text = message(ValueError, network(name), prune=Everyone())
        assert text.startswith("prune must be None for ") and text.endswith("attention depends on distances in rows")


def test_transformers_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("bert")
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    text = message(ImportError, model)
    assert text.startswith("nlp needs transformers of at least 5.0: pip install 'trisparse[nlp]' (")
    with pytest.raises(ImportError, match="at least 5.0"), packed(model):
        pass


def test_attention_matrices_are_refused_where_tokens_leave() -> None:
    fast = accelerate(network("bert"), prune=Cascade(keep=0.5))
    with pytest.raises(ValueError, match="prunes cannot run this pass: output_attentions asks for attention matrices"):
        fast(**padded((3, 2)), output_attentions=True)
    assert in_flight() is None


HOLES = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]])


@pytest.mark.parametrize("model_type", ["bert", "mpnet", "qwen3", "t5"])
def test_masks_with_holes_run_padded(model_type: str) -> None:
    model = network(model_type)
    ids = padded((4, 4))["input_ids"]
    with torch.inference_mode():
        got, want = (m(input_ids=ids, attention_mask=HOLES).last_hidden_state for m in (accelerate(model), model))
    torch.testing.assert_close(got[HOLES.bool()], want[HOLES.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_masks_of_four_axes_run_padded(model_type: str) -> None:
    model = network(model_type)
    ids = padded((4, 4))["input_ids"]
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    mask[1, 0, 3, 1] = False
    with torch.inference_mode():
        got, want = (m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (accelerate(model), model))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_pruned_network_runs_packed_or_not_at_all() -> None:
    words = "^a network that prunes cannot run this pass: "
    ids = padded((4, 4))["input_ids"]
    fast = accelerate(network("bert"), prune=Everyone(), task="cls")
    with pytest.raises(ValueError, match=words + "attention_mask has holes between the tokens of a sequence$"):
        fast(input_ids=ids, attention_mask=HOLES)
    with pytest.raises(ValueError, match=words + r"attention_mask is \[2, 1, 4, 4\], not \[B, S\]$"):
        fast(input_ids=ids, attention_mask=torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match=words + "a head reads the first column, which is padding"):
        fast(**padded((4, 2), side="left"))
    with pytest.raises(ValueError, match=words + "in training mode with attention dropout"):
        accelerate(network("bert", attention_probs_dropout_prob=0.1).train(), prune=Everyone())(input_ids=ids)
    assert in_flight() is None
    language = accelerate(network("llama", "ForCausalLM"), prune=Everyone())
    with pytest.raises(ValueError, match=words + "a key-value cache was given"):
        language(input_ids=ids, past_key_values=transformers.DynamicCache())
    # Without a cache there is one pass after the other over all tokens.
    tokens = language.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=False)
    assert tokens.shape == (2, 7)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction"])
def test_heads_that_read_one_token_never_lose_it(head: str) -> None:
    everyone_else = Cascade(0.1, layers=[1], protect=("sep",), min_tokens=1)
    fast = accelerate(network("bert", head), prune=everyone_else)
    assert fast.acceleration.task == "cls"
    ids = padded((9,))["input_ids"]
    taken = fast(input_ids=ids[:, None] if head == "ForMultipleChoice" else ids)
    assert 0 in taken.token_index
    with pytest.raises(ValueError, match="^task must be 'cls' or 'token' for Bert"):
        accelerate(network("bert", head), prune=everyone_else, task="pool")


def test_heads_that_take_a_mean_get_every_token() -> None:
    """Zeros of dropped tokens would count in ModernBERT's mean."""
    model = network("modernbert", "ForSequenceClassification", classifier_pooling="mean")
    policy = First(0.5, layers=[1], min_tokens=1)
    fast = accelerate(model, prune=policy)
    assert fast.acceleration.task == "token"
    batch = padded((9, 4), padding=padding_id(model))
    seen = []
    fast.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    fast(**batch)
    states = accelerate(model.base_model, prune=policy, task="token")(**batch).last_hidden_state
    mask = batch["attention_mask"]
    torch.testing.assert_close(seen[0], states.sum(1) / mask.sum(1, keepdim=True))
    assert (states != 0).any(-1).sum() == 13
    with pytest.raises(ValueError, match="^task must be 'token' for ModernBertForSequenceClassification"):
        accelerate(model, prune=policy, task="cls")
