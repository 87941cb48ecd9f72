"""Heads, losses and generation of accelerated networks give what they give on the padded network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nlp.accelerate import accelerate
from nlp.packing import in_flight
from tests.nlp.tiny_models import network, padded, padding_id

pytest.importorskip("transformers", minversion="5")


LENGTHS = (9, 1, 14, 4)
ENCODERS = ["albert", "bert", "camembert", "distilbert", "electra", "mpnet", "modernbert", "roberta", "xlm-roberta"]
DECODERS = ["gpt2", "llama", "mistral", "qwen3"]
SEQUENCE = [*ENCODERS, *DECODERS]
TOKENS = [*ENCODERS, *DECODERS]
CHOICE = ["albert", "bert", "distilbert", "electra", "mpnet", "roberta"]


def run(model: Any, **inputs: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs)


def both(model: Any, **inputs: Any) -> tuple[Any, Any]:
    got, want = run(accelerate(model), **inputs), run(model, **inputs)
    assert type(got) is type(want) and list(got.keys()) == list(want.keys())
    return got, want


def close(got: torch.Tensor, want: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", SEQUENCE)
def test_sequence_classification(model_type: str, side: str) -> None:
    model = network(model_type, "ForSequenceClassification", num_labels=3)
    batch = padded(LENGTHS, side=side, padding=padding_id(model))
    got, want = both(model, **batch, labels=torch.tensor([0, 2, 1, 1]))
    close(got.logits, want.logits)
    close(got.loss, want.loss)
    assert got.kept[0].tolist() == list(LENGTHS)


def test_sequence_classification_without_padding_is_packed() -> None:
    model = network("modernbert", "ForSequenceClassification", classifier_pooling="mean")
    got, want = both(model, **padded((6, 11)))
    close(got.logits, want.logits)


@pytest.mark.parametrize("model_type", TOKENS)
def test_token_classification(model_type: str) -> None:
    model = network(model_type, "ForTokenClassification", num_labels=3)
    batch = padded(LENGTHS, padding=padding_id(model))
    mask = batch["attention_mask"].bool()
    labels = torch.where(mask, batch["input_ids"] % 3, -100)
    got, want = both(model, **batch, labels=labels)
    close(got.logits[mask], want.logits[mask])
    close(got.loss, want.loss)


@pytest.mark.parametrize("model_type", TOKENS)
def test_question_answering(model_type: str) -> None:
    model = network(model_type, "ForQuestionAnswering")
    batch = padded(LENGTHS, padding=padding_id(model))
    got, want = both(model, **batch)
    mask = batch["attention_mask"].bool()
    close(got.start_logits[mask], want.start_logits[mask])
    close(got.end_logits[mask], want.end_logits[mask])


@pytest.mark.parametrize("model_type", ENCODERS)
def test_masked_language_model(model_type: str) -> None:
    model = network(model_type, "ForMaskedLM")
    batch = padded(LENGTHS, padding=padding_id(model))
    mask = batch["attention_mask"].bool()
    got, want = both(model, **batch, labels=torch.where(mask, batch["input_ids"], -100))
    close(got.logits[mask], want.logits[mask], 2e-5)
    close(got.loss, want.loss)


@pytest.mark.parametrize("model_type", CHOICE)
def test_multiple_choice(model_type: str) -> None:
    model = network(model_type, "ForMultipleChoice")
    batch = {name: x.view(2, 2, -1) for name, x in padded(LENGTHS, padding=padding_id(model)).items()}
    got, want = both(model, **batch, labels=torch.tensor([1, 0]))
    close(got.logits, want.logits)
    close(got.loss, want.loss)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("head", ["ForNextSentencePrediction", "ForPreTraining"])
def test_berts_pairs(head: str, side: str) -> None:
    model = network("bert", head)
    batch = padded(LENGTHS, side=side)
    types = (torch.arange(batch["input_ids"].shape[1]) > 4).long().expand_as(batch["input_ids"])
    got, want = both(model, **batch, token_type_ids=types)
    key = "logits" if head == "ForNextSentencePrediction" else "seq_relationship_logits"
    close(got[key], want[key])


def causal(model_type: str, **changes: Any) -> Any:
    return network(model_type, "LMHeadModel" if model_type in ("gpt2", "bert") else "ForCausalLM", **changes)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", [*DECODERS, "bert"])
def test_causal_language_model_and_its_cache(model_type: str, side: str) -> None:
    model = causal(model_type, **({"is_decoder": True} if model_type == "bert" else {}))
    batch = padded((21, 3, 40, 17), side=side)
    mask = batch["attention_mask"].bool()
    # Nothing but padding could predict the first token of a row that is padded on the left.
    labels = torch.where(mask & (mask.cumsum(1) > 1), batch["input_ids"], -100)
    got, want = both(model, **batch, labels=labels)
    close(got.loss, want.loss)
    got, want = both(model, **batch, use_cache=True)
    close(got.logits[mask], want.logits[mask], 2e-5)
    assert type(got.past_key_values) is type(want.past_key_values)
    assert got.past_key_values.get_seq_length() == want.past_key_values.get_seq_length() == 40
    for ours, theirs in zip(got.past_key_values.layers, want.past_key_values.layers, strict=True):
        assert type(ours) is type(theirs) and ours.keys.shape == theirs.keys.shape
        live = mask[:, -ours.keys.shape[2] :]  # a sliding window keeps the last columns
        for name in ("keys", "values"):
            a, b = (getattr(layer, name).transpose(1, 2)[live] for layer in (ours, theirs))
            close(a, b, 2e-5)


@pytest.mark.parametrize("model_type", DECODERS)
def test_last_logits_only(model_type: str) -> None:
    model = causal(model_type)
    got, want = both(model, **padded(LENGTHS, side="left"), logits_to_keep=1)
    assert got.logits.shape == (4, 1, 97)
    close(got.logits, want.logits, 2e-5)


@pytest.mark.parametrize("model_type", DECODERS)
def test_generates_the_same_tokens(model_type: str) -> None:
    model = causal(model_type)
    fast = accelerate(model)
    packed: list[bool] = []
    fast.acceleration.packing.parts.layers[0].register_forward_hook(lambda *_: packed.append(in_flight() is not None))
    batch = padded((21, 3, 40, 17), side="left")
    for options in (
        {"do_sample": False},
        {"do_sample": True, "top_k": 20},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
    ):
        tokens = []
        for each in (model, fast):
            torch.manual_seed(5)
            tokens.append(each.generate(**batch, max_new_tokens=8, min_new_tokens=8, pad_token_id=0, **options))
        assert torch.equal(*tokens), options
    assert packed[0] and not packed[1]  # the prompt, then one step upon the cache


def test_t5_generates_the_same_tokens() -> None:
    model = network("t5", "ForConditionalGeneration")
    batch = padded((9, 2, 30))
    labels = padded((5, 5, 5), seed=4)["input_ids"]
    got, want = both(model, **batch, labels=labels)
    close(got.logits, want.logits, 2e-5)
    close(got.loss, want.loss)
    mask = batch["attention_mask"].bool()
    close(got.encoder_last_hidden_state[mask], want.encoder_last_hidden_state[mask])
    assert not got.encoder_last_hidden_state[~mask].any()
    fast = accelerate(model)
    for options in ({"num_beams": 1}, {"num_beams": 3}):
        want, got = (m.generate(**batch, max_new_tokens=7, do_sample=False, **options) for m in (model, fast))
        assert torch.equal(got, want)
