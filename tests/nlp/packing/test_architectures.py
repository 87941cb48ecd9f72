"""Where each architecture's layers are, and the positions its base model would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nlp.accelerate import accelerate
from nlp.packing import in_flight
from nlp.packing.architectures import ARCHITECTURES, parts_of, positions
from nlp.prune import Cascade
from tests.nlp.tiny_models import CONFIGS, MORE_CONFIGS, network, padded, padding_id

pytest.importorskip("transformers", minversion="5")

ALL = sorted(ARCHITECTURES)


def test_all_have_a_small_configuration() -> None:
    assert sorted({**CONFIGS, **MORE_CONFIGS}) == ALL and not CONFIGS.keys() & MORE_CONFIGS.keys()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", sorted(MORE_CONFIGS))
def test_packed_equals_padded(model_type: str, side: str) -> None:
    model = network(model_type)
    fast = accelerate(model)
    batch = padded((33, 1, 70, 2, 7), side=side, padding=padding_id(model))
    live = batch["attention_mask"].bool()
    packed: list[bool] = []
    fast.acceleration.packing.parts.layers[0].register_forward_hook(lambda *_: packed.append(in_flight() is not None))
    with torch.inference_mode():
        want, got = model(**batch), fast(**batch)
    torch.testing.assert_close(got.last_hidden_state[live], want.last_hidden_state[live], rtol=2e-5, atol=2e-5)
    pooled = getattr(want, "pooler_output", None)
    if pooled is not None:
        torch.testing.assert_close(got.pooler_output, pooled, rtol=2e-5, atol=2e-5)
    # On the left a pooler reads padding, which only padded passes compute.
    assert packed == [side == "right" or pooled is None]
    assert got.kept[0].tolist() == [33, 1, 70, 2, 7]


@pytest.mark.parametrize("model_type", sorted(MORE_CONFIGS))
def test_pruned_sequences_do_not_depend_on_their_batch(model_type: str) -> None:
    model = network(model_type)
    fast = accelerate(model, prune=Cascade(keep=0.5, min_tokens=4))
    with torch.inference_mode():
        together = fast(**padded((33, 70), padding=padding_id(model)))
        alone = fast(**padded((33,), padding=padding_id(model)))
    assert together.kept[-1][0] == alone.kept[-1][0] < 33
    torch.testing.assert_close(together.last_hidden_state[0, :33], alone.last_hidden_state[0], rtol=2e-5, atol=2e-5)


def test_bidirectional_gemma() -> None:
    """As EmbeddingGemma: a window to both sides."""
    model = network("gemma3_text", use_bidirectional_attention=True)
    batch = padded((33, 70), padding=padding_id(model))
    live = batch["attention_mask"].bool()
    with torch.inference_mode():
        want, got = (each(**batch).last_hidden_state[live] for each in (model, accelerate(model)))
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    assert not torch.allclose(want, accelerate(network("gemma3_text"))(**batch).last_hidden_state[live], atol=1e-2)


def test_masks_that_scale_a_row_are_that_row_s() -> None:
    """ESM scales a row's tokens by its masks: of several rows at once it would take their mean."""
    model = network("esm")
    batch = padded((33, 70), padding=padding_id(model))
    batch["input_ids"][1, 3:9] = model.config.mask_token_id
    live = batch["attention_mask"].bool()
    with torch.inference_mode():
        want, got = (each(**batch).last_hidden_state[live] for each in (model, accelerate(model)))
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_the_loss_of_routers_is_that_of_the_padded_network(model_type: str) -> None:
    model = network(model_type, "ForCausalLM")
    batch = padded((33, 12), padding=padding_id(model))
    more = {"labels": batch["input_ids"], "output_router_logits": True}
    with torch.inference_mode():
        want, got = (each(**batch, **more) for each in (model, accelerate(model)))
    torch.testing.assert_close(got.aux_loss, want.aux_loss)
    torch.testing.assert_close(got.loss, want.loss, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("known", [True, False])
def test_other_values_for_each_token(known: bool) -> None:
    model = network("layoutlm" if known else "bert")
    batch = padded((33, 70), padding=padding_id(model))
    live = batch["attention_mask"].bool()
    boxes = torch.randint(0, 100, (2, 70, 4)).sort(dim=2).values
    more = {"bbox": boxes} if known else {"past_values": boxes}  # BERT hands on what it does not know
    with torch.inference_mode():
        want, got = (each(**batch, **more).last_hidden_state[live] for each in (model, accelerate(model)))
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("head", ["Model", "head"])
@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_layers_are_called_in_order_and_counted(model_type: str, head: str) -> None:
    heads = {"t5": "ForConditionalGeneration"}
    model = network(model_type, "Model" if head == "Model" else heads.get(model_type, "ForSequenceClassification"))
    parts = parts_of(model)
    calls: list[int] = []
    for i, layer in enumerate(parts.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    stacked: list[int] = []
    parts.stack.register_forward_pre_hook(lambda *_: stacked.append(len(calls)))
    parts.stack.register_forward_hook(lambda *_: stacked.append(len(calls)))
    with torch.inference_mode():
        parts.base(**padded((5,), padding=padding_id(model)))
    assert len(calls) == parts.n_calls
    assert list(dict.fromkeys(calls)) == list(range(len(parts.layers)))
    assert stacked == [0, parts.n_calls]
    assert parts.architecture is ARCHITECTURES[model_type]


@pytest.mark.parametrize("model_type", [name for name in ALL if name not in ("t5", "esm")])
@pytest.mark.parametrize("embedded", [False, True])
def test_positions_are_those_of_the_network(model_type: str, embedded: bool) -> None:
    """Handing in the positions changes nothing, bit for bit; other positions do."""
    model = network(model_type)
    parts = parts_of(model)
    batch = padded((4, 9), side="left", padding=padding_id(model))
    ids = batch.pop("input_ids")
    inputs: dict[str, Any] = {"input_ids": ids}
    if embedded:
        inputs = {"inputs_embeds": model.get_input_embeddings()(ids).detach()}
    own = positions(parts.architecture, parts.base, None if embedded else ids, (2, 9), ids.device)
    assert own is not None and own.shape == (2, 9)
    with torch.inference_mode():
        want, got, other = (
            model(**inputs, **batch, **more).last_hidden_state
            for more in ({}, {"position_ids": own}, {"position_ids": own.flip(1)})
        )
    assert torch.equal(got, want)
    assert not torch.equal(other, want)


def test_t5_has_no_positions() -> None:
    parts = parts_of(network("t5"))
    assert positions(parts.architecture, parts.base, torch.ones(1, 3), (1, 3), torch.device("cpu")) is None
