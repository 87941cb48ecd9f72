"""What `compare` says of two networks, on every kind of data."""

from __future__ import annotations

import math

import pytest
import torch

from common_models import agreement as common
from nlp.accelerate import accelerate
from nlp.agreement import compare
from nlp.prune import First
from tests.nlp.tiny_models import network, padded, padding_id

pytest.importorskip("transformers", minversion="5")


def test_how_far_they_agree() -> None:
    model = network("bert")
    agreement = compare(model, accelerate(model), padded((9, 4, 0)))
    assert agreement.largest <= 1e-5 and agreement.kept == 1.0
    # The row of padding alone is left out.
    assert len(agreement.cosine) == 2 and agreement.cosine.min() > 1 - 1e-6
    assert "100% of tokens kept" in str(agreement)
    assert isinstance(agreement, common.Agreement) and (agreement.rows, agreement.top1) == (13, 1.0)
    assert 0 < agreement.mean_difference < agreement.max_difference == agreement.largest
    worse = compare(model, accelerate(model, dtype="bf16"), padded((9, 4)))
    assert agreement.largest < worse.largest < 0.2
    assert compare(model, model, padded((9, 4))).largest == 0
    pruned = compare(model, accelerate(model, prune=First(layers=[1], min_tokens=1)), padded((10, 4)))
    assert pruned.kept == 0.5 and pruned.cosine.max() < 1


def test_several_batches_count_as_one() -> None:
    model = network("bert")
    fast = accelerate(model, prune=First(layers=[1], min_tokens=1))
    whole, parts = padded((9, 4)), [padded((9, 4)), padded((7,), seed=5)]
    assert torch.equal(compare(model, fast, [whole]).cosine, compare(model, fast, whole).cosine)
    found = compare(model, fast, (part for part in parts))
    assert len(found.cosine) == 3 and found.kept == (5 + 2 + 4) / 20
    assert found.largest == max(compare(model, fast, part).largest for part in parts)
    for nothing in ([], padded((0, 0), extra=3), {"input_ids": torch.zeros(0, 3, dtype=torch.int64)}):
        assert str(compare(model, fast, nothing)) == "nothing compared"


def test_networks_in_training_mode_are_compared_without_dropout() -> None:
    model = network("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    model.encoder.layer[0].eval()
    fast = accelerate(model)
    before = [module.training for module in model.modules()]
    assert compare(model, fast, padded((9, 4))).largest <= 1e-5
    assert [module.training for module in model.modules()] == before


def test_what_is_for_heads_and_decoders_is_left_out() -> None:
    t5 = network("t5", "ForConditionalGeneration", decoder_start_token_id=0)
    batch = padded((9, 4), padding=padding_id(t5))
    assert compare(t5, accelerate(t5), {**batch, "decoder_input_ids": batch["input_ids"]}).largest <= 1e-5
    classifier = network("bert", "ForSequenceClassification")
    labelled = {**padded((9, 4)), "labels": torch.tensor([0, 1])}
    assert compare(classifier, accelerate(classifier), labelled).largest <= 1e-5


def test_not_finite_shows() -> None:
    model = network("bert")
    fast = accelerate(model, dtype="fp16")
    with torch.no_grad():
        fast.encoder.layer[0].output.dense.bias.fill_(float("nan"))
    found = compare(model, fast, [padded((9, 4)), padded((3,))])
    assert found.largest == found.max_difference == math.inf and found.cosine.isnan().all()


def test_refusals() -> None:
    model = network("bert")
    fast = accelerate(model)
    with pytest.raises(ValueError, match=r"^data must hold input_ids, got attention_mask$"):
        compare(model, fast, {"attention_mask": torch.ones(1, 1)})
    with pytest.raises(ValueError, match=r"^attention_mask must be \[2, 9\] \[B, S\], got \[2, 3\]$"):
        compare(model, fast, {**padded((9, 4)), "attention_mask": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="^tokenizer must be given"):
        compare(model, fast, ["a text"])
    for wrong in ("a text", 3, [3], [padded((2,)), "a text"], ["a text", padded((2,))]):
        with pytest.raises(TypeError, match="^data must "):
            compare(model, fast, wrong)  # type: ignore[arg-type]


def test_texts() -> None:
    from nlp.pretrained import load_pretrained

    try:
        model = load_pretrained("all-minilm-l6-v2")
    except (ValueError, ImportError, OSError) as error:
        pytest.skip(str(error))
    found = compare(model, accelerate(model), ["One text.", "", "A longer text than that one is."])
    assert len(found.cosine) == 3 and found.cosine.min() > 1 - 1e-5
