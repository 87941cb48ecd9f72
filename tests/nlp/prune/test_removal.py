"""Networks that remove tokens give what dense ones with masked tokens give, whoever shares the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5")

from nlp.accelerate import accelerate
from nlp.prune import Cascade, First, Mass, Merge, Policy, Random, Threshold, mean_pool
from tests.nlp.prune import oracle
from tests.nlp.tiny_models import network, padded, padding_id

LENGTHS = (40, 9, 0, 97, 33)
LEAST = 20
POLICIES = ["accumulated", "local", "threshold", "mass", "merge"]


def shares(n: int, last: float) -> list[float]:
    return [last ** (i / (n - 1)) for i in range(n)]


def policy_of(name: str, n: int) -> tuple[Policy, oracle.Choice]:
    least: dict[str, Any] = {"min_tokens": LEAST}
    each: dict[str, Any] = {**least, "layers": list(range(1, n))}
    if name == "threshold":
        thetas = [1.1 * i / (n - 1) for i in range(n)]
        return Threshold(1.1, score="exact", **least), oracle.threshold(thetas)
    if name == "mass":
        return Mass(0.8, score="exact", **least), oracle.mass(0.8)
    if name == "merge":
        return Merge(0.4, **each), oracle.merge(shares(n, 0.4))
    local = name == "local"
    return Cascade(0.4, score="exact", accumulate=not local, **each), oracle.cascade(shares(n, 0.4), not local)


def run(model: Any, **inputs: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs)


def n_calls(model: Any) -> int:
    from nlp.packing.architectures import parts_of

    return parts_of(model).n_calls


# Those that share their code with others are tried with one policy only.
_CASES = [(m, p, "right") for m in ("bert", "modernbert", "albert") for p in POLICIES]
_CASES += [(m, p, "right") for m in ("llama", "mistral") for p in POLICIES if p != "merge"]
_CASES += [
    (m, "local", "right") for m in ("camembert", "distilbert", "electra", "gpt2", "qwen3", "roberta", "xlm-roberta")
]
_CASES += [(m, "local", "left") for m in ("bert", "gpt2", "llama", "modernbert", "roberta")]


@pytest.mark.parametrize(("model_type", "name", "side"), _CASES)
def test_equals_masking(model_type: str, name: str, side: str) -> None:
    model = network(model_type).double()
    policy, choose = policy_of(name, n_calls(model))
    fast = accelerate(model, prune=policy, task="pool")
    batch = padded(LENGTHS, side=side, padding=padding_id(model))
    got = run(fast, **batch)
    removed = 0
    for row, n in enumerate(LENGTHS):
        live = batch["attention_mask"][row].bool()
        ids = batch["input_ids"][row][live]
        if not n:
            assert not got.last_hidden_state[row].any() and not got.kept[:, row].any()
            continue
        columns = live.nonzero()[:, 0]
        positions = columns if side == "left" and model_type != "roberta" else None
        want, state = oracle.pruned(model, ids, choose if n >= LEAST else lambda _, s: torch.arange(s.n), positions)
        assert got.kept[:, row].tolist() == [*state.alive_in, int(state.alive.sum())]
        index = got.token_index[row]
        assert index[index >= 0].tolist() == columns[state.alive].tolist()
        states = got.last_hidden_state[row][live]
        if name == "merge":
            torch.testing.assert_close(states, want[state.group], rtol=0, atol=1e-5)
        else:
            torch.testing.assert_close(states[state.alive], want[state.alive], rtol=0, atol=1e-9)
            assert not states[~state.alive].any()
        pooled = mean_pool(got, batch["attention_mask"])[row].double()
        right = (want * state.sizes[:, None])[state.alive].sum(0) / state.sizes[state.alive].sum()
        torch.testing.assert_close(pooled, right, rtol=0, atol=1e-5)
        removed += n - int(state.alive.sum())
        assert n >= LEAST or int(state.alive.sum()) == n
    assert removed > 10


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "llama"])
@pytest.mark.parametrize(
    "policy",
    [
        Cascade(0.4, min_tokens=8), Cascade(0.3, layers=[1], score="exact", min_tokens=8), Threshold(0.9, min_tokens=8),
        Mass(0.7, min_tokens=8), Merge(0.4, min_tokens=8), Random(0.4, min_tokens=8), First(0.4, min_tokens=8),
    ],
    ids=lambda p: type(p).__name__,
)  # fmt: skip
def test_a_sequence_does_not_depend_on_its_batch(model_type: str, policy: Policy) -> None:
    if model_type == "llama" and isinstance(policy, Merge):
        with pytest.raises(ValueError, match="Merge cannot serve a causal network"):
            accelerate(network(model_type), prune=policy)
        return
    model = network(model_type)
    fast = accelerate(model, prune=policy, task="pool")
    lengths = (50, 70, 3, 50, 0, 130)
    alone = {n: run(fast, **padded((n,), padding=padding_id(model), extra=int(n == 0))) for n in set(lengths)}
    for order, extra, side in (
        ((0, 1, 2, 3, 4, 5), 0, "right"),
        ((5, 3, 4, 0, 1, 2), 7, "right"),
        ((1, 5, 0, 2, 3, 4), 3, "left"),
    ):
        if side == "left" and model_type == "bert":
            continue  # its positions are columns
        chosen = [lengths[i] for i in order]
        batch = padded(chosen, side=side, padding=padding_id(model), extra=extra)
        got = run(fast, **batch)
        again = run(fast, **batch)
        assert torch.equal(got.last_hidden_state, again.last_hidden_state)
        for row, n in enumerate(chosen):
            live = batch["attention_mask"][row].bool()
            first = int(live.nonzero()[0]) if n else 0
            want = alone[n]
            assert got.kept[:, row].tolist() == want.kept[:, 0].tolist()
            index = got.token_index[row]
            assert (index[index >= 0] - first).tolist() == want.token_index[0].tolist()
            torch.testing.assert_close(
                got.last_hidden_state[row][live], want.last_hidden_state[0][:n], rtol=0, atol=1e-5
            )


HEADED = [
    ("bert", "ForTokenClassification"), ("bert", "ForQuestionAnswering"), ("bert", "ForMaskedLM"),
    ("modernbert", "ForTokenClassification"), ("distilbert", "ForQuestionAnswering"),
    ("roberta", "ForTokenClassification"),
    ("llama", "ForCausalLM"), ("gpt2", "LMHeadModel"), ("qwen3", "ForTokenClassification"),
]  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("model_type", "head"), HEADED)
def test_heads_of_tokens_read_the_state_that_each_left_with(model_type: str, head: str, side: str) -> None:
    model = network(model_type, head).double()
    n = n_calls(model)
    policy, choose = policy_of("local", n)
    batch = padded(LENGTHS, side=side, padding=padding_id(model))
    fast = accelerate(model, prune=policy)
    assert fast.acceleration.task == "token"
    got = run(fast, **batch)
    states = run(accelerate(model, prune=policy).base_model, **batch).last_hidden_state
    final = next(
        (getattr(model.base_model, x) for x in ("norm", "final_norm", "ln_f") if hasattr(model.base_model, x)), None
    )
    for row, length in enumerate(LENGTHS):
        live = batch["attention_mask"][row].bool()
        if not length:
            continue
        columns = live.nonzero()[:, 0]
        positions = columns if side == "left" and model_type != "roberta" else None
        want, state = oracle.pruned(
            model.base_model, batch["input_ids"][row][live],
            choose if length >= LEAST else lambda _, s: torch.arange(s.n), positions,
        )  # fmt: skip
        assert length < LEAST or int(state.alive.sum()) < length
        assert state.last is not None
        with torch.no_grad():
            left = state.last if final is None else final(state.last)
        want = want.where(state.alive[:, None], left)
        torch.testing.assert_close(states[row][live], want, rtol=0, atol=1e-9)
    first = got.start_logits if "Question" in head else got.logits
    with torch.no_grad():
        if head == "ForQuestionAnswering":
            right = model.qa_outputs(states)[..., 0]
        elif head == "LMHeadModel" or head == "ForCausalLM":
            right = model.lm_head(states)
        elif head == "ForMaskedLM":
            right = model.cls(states)
        else:
            right = (
                model.classifier(model.head(states))
                if model_type == "modernbert"
                else (model.score(states) if hasattr(model, "score") else model.classifier(states))
            )
    torch.testing.assert_close(first, right, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("model_type", "side"),
    [("bert", "right"), ("distilbert", "right"), ("llama", "right"), ("llama", "left"), ("gpt2", "left")],
)
def test_heads_of_sequences_never_lose_the_token_that_they_read(model_type: str, side: str) -> None:
    model = network(model_type, "ForSequenceClassification", num_labels=3).double()
    n = n_calls(model)
    # Whatever ranks last, the token that the head reads stays.
    fast = accelerate(model, prune=Random(0.05, protect=(), min_tokens=LEAST))
    assert fast.acceleration.task == "cls"
    batch = padded((97, 40), side=side, padding=padding_id(model))
    got = run(fast, **batch)
    assert got.logits.shape == (2, 3)
    assert got.kept[-1].tolist() == [5, 2]
    read = 0 if model_type in ("bert", "distilbert") else -1
    for row in range(2):
        columns = batch["attention_mask"][row].nonzero()[:, 0]
        kept = got.token_index[row]
        assert int(columns[read]) in kept[kept >= 0].tolist()
    assert run(fast, **padded((97, 40), seed=9, side=side, padding=padding_id(model))).logits.ne(got.logits).all()
    policy, choose = policy_of("local", n)
    got = run(accelerate(model, prune=policy), **batch)
    for row in range(2):
        live = batch["attention_mask"][row].bool()
        positions = live.nonzero()[:, 0] if side == "left" else None
        want, _ = oracle.pruned(model.base_model, batch["input_ids"][row][live], choose, positions)
        with torch.no_grad():
            if model_type == "bert":
                right = model.classifier(model.bert.pooler(want[None]))[0]
            elif model_type == "distilbert":
                right = model.classifier(torch.relu(model.pre_classifier(want[0])))
            else:
                right = model.score(want[-1])
        torch.testing.assert_close(got.logits[row], right, rtol=0, atol=1e-9)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "modernbert"])
def test_hidden_states_are_padded(model_type: str) -> None:
    model = network(model_type)
    batch = padded((60, 97), padding=padding_id(model))
    got = run(accelerate(model, prune=Cascade(0.4, min_tokens=LEAST), task="pool"), **batch, output_hidden_states=True)
    for state in got.hidden_states:
        assert state.shape == (2, 97, 32)
    assert (got.hidden_states[0] != 0).any(-1).sum(1).tolist() == [60, 97]


def test_nothing_happens_to_short_sequences() -> None:
    model = network("bert")
    batch = padded((63, 10, 1, 64))
    got = run(accelerate(model, prune=Cascade(0.3)), **batch)
    want = run(model, **batch)
    assert got.kept[-1].tolist() == [63, 10, 1, 20]
    mask = batch["attention_mask"].bool()
    mask[3] = False
    torch.testing.assert_close(got.last_hidden_state[mask], want.last_hidden_state[mask], rtol=0, atol=1e-5)


def test_policies_that_do_not_fit_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="keep must hold one share for each of the 3 layers, got 2"):
        accelerate(network("bert"), prune=Cascade([1, 0.5]))
    with pytest.raises(ValueError, match="layers must lie between 1 and 2 in a network of 3, got 3"):
        accelerate(network("bert"), prune=Random(0.5, layers=[3]))
    with pytest.raises(ValueError, match="theta must hold one value for each of the 3 layers, got 4"):
        accelerate(network("bert"), prune=Threshold([0, 0.5, 0.5, 1]))
    with pytest.raises(ValueError, match="p must hold one value for each of the 3 layers, got 1"):
        accelerate(network("bert"), prune=Mass([1]))
    with pytest.raises(ValueError, match="Merge cannot serve a causal network"):
        accelerate(network("bert", is_decoder=True), prune=Merge())


def test_keeping_everything_changes_nothing() -> None:
    model = network("modernbert")
    batch = padded((97, 40, 1))
    want = run(accelerate(model), **batch)
    for policy in (Cascade(1), Random(1.0), Threshold(0.0), Mass(1.0), Merge(1.0), First([1, 1, 1, 1])):
        got = run(accelerate(model, prune=policy, task="pool"), **batch)
        assert torch.equal(got.last_hidden_state, want.last_hidden_state)
        assert torch.equal(got.kept, want.kept)


def test_schedules() -> None:
    assert Cascade(0.25).shares(6) == (1, 0.5, 0.5, 0.25, 0.25, 0.25)
    assert Random(0.25).drops(12) == (2, 6) and First(0.5).shares(1) == (1,) and Cascade(0.5).shares(2) == (1, 0.5)
    assert Merge(0.125).shares(6) == (1, 0.5, 0.25, 0.125, 0.125, 0.125)
    assert Merge(0.5).shares(1) == (1,) and Merge(0.5).shares(3) == (1, 0.5, 0.5)
    assert First([1, 0.9, 0.2]).shares(3) == (1, 0.9, 0.2)


def test_measures_only_where_it_must() -> None:
    for policy, wanted in (
        (Cascade(0.5), [True, False, True, False, False, False]),
        (Cascade(0.5, layers=[2, 4], accumulate=True), [True] * 4 + [False] * 2),
        (Cascade(0.5, layers=[2, 4], score="strided:32"), [False, 32, False, 32, False, False]),
        (Cascade([1, 1, 0.5, 0.5, 0.5, 0.5], score="exact", accumulate=True), [True, True, False, False, False, False]),
        (Threshold([0, 0, 0, 1, 0, 1], score="strided:8"), [False, False, 8, False, 8, False]),
        (Mass([1, 1, 0.9, 1, 1, 1], score="exact"), [False, True, False, False, False, False]),
        (Random(0.5), [False] * 6), (First(0.5), [False] * 6), (Merge(0.5), [False] * 6),
    ):  # fmt: skip
        assert [policy.importance(layer, 6) for layer in range(6)] == wanted
    assert [Merge(0.5, layers=[2]).wants_keys(layer, 6) for layer in range(6)] == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]
