"""Where each architecture's layers are, and the positions its base model would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nlp.packing.architectures import ARCHITECTURES, parts_of, positions
from tests.nlp.tiny_models import CONFIGS, network, padded, padding_id

pytest.importorskip("transformers", minversion="5")

ALL = sorted(ARCHITECTURES)


def test_all_have_a_small_configuration() -> None:
    assert sorted(CONFIGS) == ALL


@pytest.mark.parametrize("head", ["Model", "head"])
@pytest.mark.parametrize("model_type", ALL)
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


@pytest.mark.parametrize("model_type", [name for name in ALL if name != "t5"])
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
