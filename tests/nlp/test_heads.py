"""Networks that lost heads equal those whose heads say nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", minversion="5")

from nlp.accelerate import accelerate
from nlp.heads import head_importance, prune_heads
from nlp.prune import Cascade
from tests.nlp.tiny_models import network, padded, padding_id

OUTPUT = {"distilbert": "attention.out_lin", "llama": "self_attn.o_proj", "mistral": "self_attn.o_proj"}
OUTPUT["qwen3"] = OUTPUT["llama"]
KINDS = ["bert", "camembert", "distilbert", "electra", "llama", "mistral", "qwen3", "roberta", "xlm-roberta"]


def projections(model: Any, model_type: str) -> list[Any]:
    from nlp.packing.architectures import parts_of

    return [layer.get_submodule(OUTPUT.get(model_type, "attention.output.dense")) for layer in parts_of(model).layers]


def run(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**batch).last_hidden_state[batch["attention_mask"].bool()]


@pytest.mark.parametrize("model_type", KINDS)
def test_equals_heads_that_say_nothing(model_type: str) -> None:
    model = network(model_type).double()
    batch = padded((33, 7, 70), padding=padding_id(model))
    # Two query heads share a head of keys in the causal ones: heads of 8 channels in groups of 16.
    heads: dict[int, list[int]] = (
        {0: [1], 2: [0]} if model_type in OUTPUT and model_type != "distilbert" else {0: [2, 0], 2: [3]}
    )
    width = 16 if model_type in OUTPUT and model_type != "distilbert" else 8
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune_heads(model, heads)
    assert type(pruned) is type(model) and pruned.pruned_heads == {layer: sorted(h) for layer, h in heads.items()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for layer, projection in enumerate(projections(pruned, model_type)):
        assert projection.weight.shape == (32, 32 - width * len(heads.get(layer, [])))
    for layer, projection in enumerate(projections(model, model_type)):

        def silence(module: Any, args: Any, gone: list[int] = heads.get(layer, [])) -> Any:  # noqa: B008
            said = args[0].clone()
            for head in gone:
                said[..., head * width : (head + 1) * width] = 0
            return (said,)

        projection.register_forward_pre_hook(silence)
    want = run(model, batch)
    torch.testing.assert_close(run(pruned, batch), want, rtol=0, atol=1e-9)
    torch.testing.assert_close(run(accelerate(pruned), batch), want, rtol=0, atol=1e-9)
    kept = accelerate(pruned, prune=Cascade(0.5, min_tokens=8), task="pool")
    assert run(kept, batch).isfinite().all()


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_importance_is_what_heads_say_to_live_tokens(model_type: str) -> None:
    model = network(model_type)
    batches = [padded((9, 20), padding=padding_id(model)), padded((5,), padding=padding_id(model))]
    units = 4 if model_type == "bert" else 2
    seen: list[list[Tensor]] = [[] for _ in range(3)]
    for layer, projection in enumerate(projections(model, model_type)):
        projection.register_forward_pre_hook(lambda m, args, layer=layer: seen[layer].append(args[0]))
    got = head_importance(model, batches)
    assert got.shape == (3, units) and got.dtype == torch.float64
    for layer in range(3):
        for unit in range(units):
            total = 0.0
            for batch, said in zip(batches, seen[layer]):
                for row, mask in zip(said, batch["attention_mask"].bool()):
                    total += float(row[mask].view(int(mask.sum()), units, -1)[:, unit].double().abs().sum())
            assert abs(float(got[layer, unit]) - total / 34) < 1e-6
    torch.testing.assert_close(head_importance(accelerate(model), batches), got)


def test_keeps_the_most_important() -> None:
    model = network("bert")
    importance = torch.tensor([[3.0, 1, 2, 4], [1, 2, 3, 4], [1, 1, 1, 0]])
    assert prune_heads(model, importance=importance, keep=0.5).pruned_heads == {0: [1, 2], 1: [0, 1], 2: [0, 3]}
    assert prune_heads(model, importance=importance, keep=0.6).pruned_heads == {0: [1], 1: [0], 2: [3]}
    assert prune_heads(model, importance=importance, keep=1).pruned_heads == {}


def test_headed_networks_lose_heads_and_still_train() -> None:
    model = network("bert", "ForSequenceClassification", num_labels=3)
    pruned = prune_heads(model, {1: [0, 1]}).train()
    out = pruned(**padded((9, 20)), labels=torch.tensor([0, 2]))
    out.loss.backward()
    assert pruned.bert.encoder.layer[1].attention.self.query.weight.grad.shape == (16, 32)
    assert model.bert.encoder.layer[1].attention.self.query.weight.grad is None


def test_refusals() -> None:
    model = network("bert")
    importance = torch.ones(3, 4)
    for arguments, message in [
        (dict(heads={3: [0]}), "heads must name layers from 0 to 2, got 3"),
        (dict(heads={0: [4]}), r"heads of layer 0 must be different numbers below 4, got \[4\]"),
        (dict(heads={0: [1, 1]}), r"different numbers below 4, got \[1, 1\]"),
        (dict(heads={2: [0, 1, 2, 3]}), "heads must leave one to layer 2, got all 4"),
        (dict(), "either heads, or importance and keep, must be given"),
        (dict(heads={}, keep=0.5), "either heads, or importance and keep,"),
        (dict(heads={}, importance=importance), "either heads, or importance and keep,"),
        (dict(importance=importance, keep=0), "keep must lie above 0 and be at most 1, got 0"),
        (dict(importance=importance[:2], keep=0.5), r"importance must be \[3, 4\] \[layers, heads\], got \[2, 4\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            prune_heads(model, **arguments)
    with pytest.raises(ValueError, match="heads can be cut out of bert, .*, got 'albert'"):
        prune_heads(network("albert"), {0: [0]})
    with pytest.raises(ValueError, match="model must have all its heads, got one without"):
        prune_heads(prune_heads(model, {0: [0]}), {0: [0]})
    with pytest.raises(ValueError, match="batches must hold at least one token"):
        head_importance(model, [])
    with pytest.raises(TypeError, match="model must be a Hugging Face network"):
        prune_heads(torch.nn.Linear(2, 2), {0: [0]})
