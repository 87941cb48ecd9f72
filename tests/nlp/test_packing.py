"""Packed passes give what the padded network gives, whatever the inputs look like and whoever shares the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nlp.accelerate import accelerate
from nlp.packing import in_flight
from tests.nlp.tiny_models import CONFIGS, LENGTHS, network, padded, padding_id

pytest.importorskip("transformers", minversion="5")


ALL = sorted(CONFIGS)
# Their padded outputs do not depend on where the tokens stand in the batch, only on each other's distance.
BY_DISTANCE = [name for name in ALL if name not in ("albert", "bert", "distilbert", "electra", "gpt2")]
POOLED = [name for name in ALL if name not in ("distilbert", "electra", "gpt2", "llama", "mistral", "modernbert")]


def run(model: Any, **inputs: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs)


def largest(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """The largest difference of two states [B, S, C] at live tokens."""
    assert a.shape == b.shape
    difference = (a - b)[mask.bool()].abs()
    return float(difference.max()) if difference.numel() else 0.0


def watched(model: Any) -> list[bool]:
    """A list that grows with each pass of an accelerated network: whether it was packed."""
    seen: list[bool] = []
    layers = model.acceleration.packing.parts.layers
    layers[0].register_forward_hook(lambda *_: seen.append(in_flight() is not None))
    return seen


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", ALL)
def test_equals_the_padded_network(model_type: str, side: str) -> None:
    model = network(model_type)
    batch = padded(side=side, padding=padding_id(model))
    mask = batch["attention_mask"].bool()
    fast = accelerate(model)
    seen = watched(fast)
    got = run(fast, **batch, output_hidden_states=True)
    want = run(model, **batch, output_hidden_states=True)
    eager = run(network(model_type, attention="eager"), **batch)
    assert type(got) is type(want) and list(got.keys()) == list(want.keys())
    assert largest(got.last_hidden_state, want.last_hidden_state, mask) <= 1e-5
    # Two padded networks differ as much: unscaled attention (T5) and residual streams round more.
    slack = largest(eager.last_hidden_state, want.last_hidden_state, mask)
    assert largest(got.last_hidden_state, eager.last_hidden_state, mask) <= max(1e-5, 2 * slack)
    assert len(got.hidden_states) == len(want.hidden_states)
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert largest(a, b, mask) <= 2e-5
    if want.get("pooler_output") is not None:
        torch.testing.assert_close(got.pooler_output, want.pooler_output, rtol=0, atol=1e-5)
    falls_back = side == "left" and getattr(model, "pooler", None) is not None
    assert all(seen) != falls_back
    if not falls_back:
        for state in (got.last_hidden_state, *got.hidden_states):
            assert not state[~mask].any()
    lengths = torch.tensor(LENGTHS)
    assert torch.equal(got.kept, lengths.expand(len(got.kept), -1)) and got.kept.dtype == torch.int64
    for row, n in enumerate(LENGTHS):
        assert got.token_index[row].tolist() == mask[row].nonzero()[:, 0].tolist() + [-1] * (max(LENGTHS) - n)


@pytest.mark.parametrize("model_type", ALL)
def test_rows_without_tokens_and_empty_batches(model_type: str) -> None:
    model = network(model_type)
    fast = accelerate(model)
    batch = padded((5, 0, 9), padding=padding_id(model))
    got, want = run(fast, **batch, output_hidden_states=True), run(model, **batch)
    assert largest(got.last_hidden_state, want.last_hidden_state, batch["attention_mask"]) <= 1e-5
    assert not got.last_hidden_state[1].any()
    assert got.kept[0].tolist() == [5, 0, 9]
    fast.pooler = None  # it reads column 0, where there may be none
    for shape in ((0, 4), (2, 4), (0, 0), (3, 0)):
        ids = torch.zeros(shape, dtype=torch.int64)
        got = run(fast, input_ids=ids, attention_mask=ids, output_hidden_states=True)
        assert got.last_hidden_state.shape == (*shape, 32)
        assert not got.last_hidden_state.any() and not got.last_hidden_state.isnan().any()
        assert got.token_index.shape == (shape[0], 0)


def _inputs(model: Any, kind: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if kind == "no mask":
        return {"input_ids": ids}
    if kind == "all ones":
        return {"input_ids": ids, "attention_mask": torch.ones_like(mask)}
    if kind == "float mask":
        return {"input_ids": ids, "attention_mask": mask.float()}
    if kind == "bool mask":
        return {"input_ids": ids, "attention_mask": mask.bool()}
    if kind == "inputs_embeds":
        with torch.no_grad():
            return {"inputs_embeds": model.get_input_embeddings()(ids).flip(2), "attention_mask": mask}
    if kind == "token_type_ids":
        return {**batch, "token_type_ids": (torch.arange(ids.shape[1]) % 2).expand(ids.shape).contiguous()}
    if kind == "token_type_ids [1, S]":
        return {**batch, "token_type_ids": (torch.arange(ids.shape[1]) % 2)[None]}
    positions = torch.arange(ids.shape[1]).flip(0) + 2
    return {**batch, "position_ids": positions[None] if kind.endswith("[1, S]") else positions.expand(ids.shape)}


_KINDS = ["no mask", "all ones", "float mask", "bool mask", "inputs_embeds"]
_CASES = [(name, kind) for name in ALL for kind in _KINDS]
_CASES += [(n, kind) for n in ALL if n != "t5" for kind in ("position_ids", "position_ids [1, S]")]
_CASES += [(n, kind) for n in ("bert", "electra", "roberta", "albert") for kind in ("token_type_ids",)]
_CASES += [("bert", "token_type_ids [1, S]"), ("gpt2", "token_type_ids")]


@pytest.mark.parametrize(("model_type", "kind"), _CASES)
def test_all_kinds_of_inputs(model_type: str, kind: str) -> None:
    model = network(model_type)
    batch = padded((3, 11, 1, 8), padding=padding_id(model))
    inputs = _inputs(model, kind, batch)
    fast = accelerate(model)
    seen = watched(fast)
    got, want = run(fast, **inputs), run(model, **inputs)
    assert all(seen)
    mask = torch.ones_like(batch["input_ids"]) if kind in ("no mask", "all ones") else batch["attention_mask"]
    assert largest(got.last_hidden_state, want.last_hidden_state, mask) <= 1e-5
    plain = run(model, **batch)
    if kind not in ("float mask", "bool mask"):  # the kind matters, or nothing was tested
        assert largest(plain.last_hidden_state, want.last_hidden_state, mask) > 1e-3


def test_arguments_by_place_and_tuples() -> None:
    model = network("bert")
    batch = padded((4, 9))
    fast = accelerate(model)
    with torch.inference_mode():
        want = model(batch["input_ids"], batch["attention_mask"], return_dict=False, output_hidden_states=True)
        got = fast(batch["input_ids"], batch["attention_mask"], return_dict=False, output_hidden_states=True)
    assert type(got) is tuple and len(got) == len(want)
    mask = batch["attention_mask"]
    assert largest(got[0], want[0], mask) <= 1e-5
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-5)
    for a, b in zip(got[2], want[2], strict=True):
        assert largest(a, b, mask) <= 1e-5


@pytest.mark.parametrize("model_type", ALL)
def test_tuples_of_every_network(model_type: str) -> None:
    model = network(model_type)
    batch = padded((4, 9), padding=padding_id(model))
    want, got = (run(m, **batch, return_dict=False) for m in (model, accelerate(model)))
    assert type(got) is tuple and len(got) == len(want)
    assert largest(got[0], want[0], batch["attention_mask"]) <= 1e-5


@pytest.mark.parametrize("model_type", ALL)
def test_bf16(model_type: str) -> None:
    model = network(model_type)
    batch = padded((33, 4, 60), padding=padding_id(model))
    got = run(accelerate(model, dtype="bf16"), **batch).last_hidden_state
    assert got.dtype == torch.bfloat16
    want = run(model, **batch).last_hidden_state
    half = run(network(model_type).to(torch.bfloat16), **batch).last_hidden_state.float()
    mask = batch["attention_mask"].bool()
    error, padded_error = ((x - want)[mask].pow(2).mean().sqrt() for x in (got.float(), half))
    assert error <= 1.3 * padded_error + 1e-3  # no worse than the padded network in bf16


@pytest.mark.parametrize("model_type", ALL)
def test_a_sequence_does_not_depend_on_its_batch(model_type: str) -> None:
    model = network(model_type)
    fast = accelerate(model)
    padding = padding_id(model)
    alone = {n: run(fast, **padded((n,), padding=padding)).last_hidden_state[0] for n in LENGTHS}
    exact = [run(fast, **padded(LENGTHS, padding=padding, extra=extra)).last_hidden_state for extra in (0, 9)]
    assert torch.equal(exact[0], exact[1][:, :-9])
    for lengths, extra in ((LENGTHS, 0), (LENGTHS[::-1], 5), ((7, 200), 31), ((33, 33, 33, 2), 1)):
        together = run(fast, **padded(lengths, padding=padding, extra=extra)).last_hidden_state
        for row, n in enumerate(lengths):
            # Bit for bit where the library multiplies few rows as it multiplies many, which it does not.
            torch.testing.assert_close(together[row, :n], alone[n], rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("model_type", BY_DISTANCE)
def test_left_padding_changes_nothing_where_positions_are_relative(model_type: str) -> None:
    model = network(model_type)
    if hasattr(model, "pooler"):
        model.pooler = None
    fast = accelerate(model)
    rotary = model_type in ("llama", "mistral", "modernbert", "qwen3")
    seen = watched(fast)
    padding = padding_id(model)
    for n in LENGTHS:
        alone = run(fast, **padded((n,), padding=padding)).last_hidden_state[0]
        for extra in (1, 30):
            shifted = run(fast, **padded((n,), side="left", padding=padding, extra=extra)).last_hidden_state[0]
            # Angles of rotary positions are rounded: a place of 230 by 1e-5, in the padded network too.
            torch.testing.assert_close(shifted[extra:], alone, rtol=0, atol=2e-5 if rotary else 1e-6)
    assert all(seen)


def test_left_padding_of_bert_with_positions() -> None:
    model = network("bert")
    model.pooler = None
    fast = accelerate(model)
    alone = run(fast, **padded((9,))).last_hidden_state[0]
    shifted = padded((9,), side="left", extra=4)
    positions = (shifted["attention_mask"].cumsum(1) - 1).clamp(min=0)
    got = run(fast, **shifted, position_ids=positions).last_hidden_state[0]
    torch.testing.assert_close(got[4:], alone, rtol=0, atol=1e-6)
