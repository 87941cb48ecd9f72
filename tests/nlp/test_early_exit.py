"""Early exit: the answers of the network itself, of each text alone, and full batches of survivors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5")

import nlp
from nlp.early_exit import SUPPORTED, EarlyExit, ExitHeads, fit_exits
from nlp.packing.passes import RUNNING
from tests.nlp import tiny_models
from tests.nlp.tiny_models import sentences

NEVER = 1.01
POOLING = ["mean", "cls", "last"]


def ids(n: int = 60, longest: int = 40) -> list[list[int]]:
    """Token ids of 1 to `longest` tokens, always the same."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(4, 97, (length,), generator=generator).tolist() for length in lengths]


def heads_of(model: Any, layers: tuple[int, ...], pooling: str = "mean", scale: float = 0.5) -> ExitHeads:
    """Random heads of three classes that are sure of some texts and not of others."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(len(layers), 3, model.config.hidden_size, generator=generator) * scale
    bias = torch.randn(len(layers), 3, generator=generator)
    return ExitHeads(layers, weight, bias, ("a", "b", "c"), pooling)


@torch.no_grad()
def by_hidden_states(model: Any, given: list[int], heads: ExitHeads) -> list[torch.Tensor]:
    """The probabilities [C] at each exit for one text, from the hidden states that the network itself returns."""
    states = model(input_ids=torch.tensor([given]), output_hidden_states=True).hidden_states
    found = []
    for weight, bias, layer in zip(heads.weight, heads.bias, heads.layers):
        state = states[layer][0]
        pooled = {"mean": state.mean(0), "cls": state[0], "last": state[-1]}[heads.pooling]
        found.append((weight @ pooled + bias).softmax(0))
    return found


@pytest.mark.parametrize("pooling", POOLING)
@pytest.mark.parametrize("model_type", SUPPORTED)
def test_each_exit_is_that_of_the_network_alone(model_type: str, pooling: str) -> None:
    model = tiny_models.network(model_type)
    heads = heads_of(model, (1, 2, 3), pooling, 0.3)
    texts = ids()
    answers, trace = EarlyExit(model, heads, confidence=0.8, max_tokens=200).classify(texts)
    used = set()
    for given, answer in zip(texts, answers):
        expected = by_hidden_states(model, given, heads)
        leaves = next((i for i, p in enumerate(expected[:-1]) if p.max() >= 0.8), 2)
        assert answer.layer == heads.layers[leaves] and answer.tokens == len(given)
        np.testing.assert_allclose(answer.probabilities, expected[leaves].numpy(), atol=1e-5)
        assert answer.label == heads.labels[int(expected[leaves].argmax())]
        used.add(answer.layer)
    assert used == {1, 2, 3} and len(answers) == len(texts)
    assert trace.exited == {n: sum(each.layer == n for each in answers) for n in (1, 2, 3)}
    assert RUNNING.get() == ()


def test_never_sure_is_the_last_head_on_the_accelerated_network() -> None:
    model = tiny_models.network("bert")
    heads, texts = heads_of(model, (1, 3)), ids()
    answers, trace = EarlyExit(model, heads, confidence=NEVER, max_tokens=100).classify(texts)
    width = max(map(len, texts))
    batch = torch.tensor([each + [0] * (width - len(each)) for each in texts])
    mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in texts])
    with torch.no_grad():
        out = nlp.accelerate(model)(input_ids=batch, attention_mask=mask)
    expected = (nlp.mean_pool(out, mask) @ heads.weight[-1].T + heads.bias[-1]).softmax(1)
    np.testing.assert_allclose(np.stack([each.probabilities for each in answers]), expected.numpy(), atol=1e-5)
    assert trace.shares == {1: 0.0, 3: 1.0} and trace.token_layers == trace.full_token_layers == 3 * int(mask.sum())


def test_companions_do_not_matter() -> None:
    model = tiny_models.network("bert")
    texts = ids()
    exits = EarlyExit(model, heads_of(model, (1, 2, 3), scale=0.3), confidence=0.8, max_tokens=150)
    together = exits.classify(texts)[0]
    for given, answer in zip(texts, together):
        (alone,), _ = exits.classify([given])
        assert alone.layer == answer.layer
        np.testing.assert_allclose(alone.probabilities, answer.probabilities, atol=1e-5)
    backwards = exits.classify(texts[::-1])[0][::-1]
    assert [each.layer for each in backwards] == [each.layer for each in together]


def test_survivors_fill_batches() -> None:
    """Of 40 batches of ten texts about one survives each; they go on in two batches, and not in 40."""
    model = tiny_models.network("bert")
    heads = heads_of(model, (1, 3), scale=0.3)
    texts = [each[:20] for each in ids(400, 60) if len(each) >= 20]
    texts = texts + [list(each) for each in texts[::-1]]
    likely = np.sort([float(by_hidden_states(model, given, heads)[0].max()) for given in texts])
    confidence = float(likely[len(texts) // 10] + likely[len(texts) // 10 + 2]) / 2
    exits = EarlyExit(model, heads, confidence=confidence, max_tokens=200)
    sizes: list[int] = []
    exits._stages.layers[2].register_forward_pre_hook(lambda layer, args: sizes.append(args[0].shape[1]))
    answers, trace = exits.classify(texts)
    survivors = trace.exited[3]
    assert 0.05 < trace.shares[3] < 0.15 and trace.batches[1] == -(-len(texts) // 10)
    assert sizes == [200] * (survivors // 10) + [20 * (survivors % 10)] * (survivors % 10 > 0)
    assert trace.batches[3] == len(sizes)
    assert trace.token_layers == 20 * (len(texts) + 2 * survivors) and trace.full_token_layers == 60 * len(texts)
    assert sum(each.layer == 3 for each in answers) == survivors


def test_pools_keep_to_their_bound() -> None:
    """Of uneven lengths; a text above the bound goes alone."""
    model = tiny_models.network("bert")
    texts = [*ids(50), [5] * 90]
    exits = EarlyExit(model, heads_of(model, (1, 2, 3)), confidence=NEVER, max_tokens=64)
    sizes: list[int] = []
    for layer in exits._stages.layers:
        layer.register_forward_pre_hook(lambda layer, args: sizes.append(args[0].shape[1]))
    exits.classify(texts)
    assert sum(sizes) == 3 * sum(map(len, texts))
    assert sorted({size for size in sizes if size > 64}) == [90] and np.mean(sizes) > 45


def separable(n: int) -> tuple[list[str], list[str]]:
    """Texts whose class is one word, from 3 to 11 words long."""
    texts = [f"the film {['good', 'bad'][i % 2]} {words}" for i, words in enumerate(sentences(n, 8))]
    clean = [" ".join(w for j, w in enumerate(t.split()) if j < 3 or w not in ("good", "bad")) for t in texts]
    return clean, [["good", "bad"][i % 2] for i in range(n)]


@pytest.mark.parametrize("pooling", POOLING)
def test_fit(pooling: str) -> None:
    model, tokenizer = tiny_models.bert(num_hidden_layers=3), tiny_models.tokenizer()
    texts, labels = separable(400)
    heads = fit_exits(
        model,
        texts[:300],
        labels[:300],
        layers=[1],
        tokenizer=tokenizer,
        pooling=pooling,
        max_tokens=100,
        regularization=0.01,
    )
    assert heads.layers == (1, 3) and heads.labels == ("bad", "good") and heads.pooling == pooling
    assert not heads.weight.requires_grad and heads.weight.dtype == torch.float32
    # The least of the penalised loss, where its gradient vanishes: of features that the network itself gives.
    rows = []
    for text in texts[:300]:
        with torch.no_grad():
            found = model(torch.tensor([tokenizer(text).input_ids]), output_hidden_states=True).hidden_states
        rows.append(
            [{"mean": found[i][0].mean(0), "cls": found[i][0, 0], "last": found[i][0, -1]}[pooling] for i in (1, 3)]
        )
    target = torch.tensor([heads.labels.index(label) for label in labels[:300]])
    for i in range(2):
        x = torch.stack([row[i] for row in rows]).double()
        weight, bias = (each[i].double().requires_grad_() for each in (heads.weight, heads.bias))
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, target) + 0.01 / 600 * weight.square().sum()
        gradients = torch.autograd.grad(loss, (weight, bias))
        assert max(float(each.abs().max()) for each in gradients) < 1e-4
    answers, trace = EarlyExit(model, heads, confidence=0.9, max_tokens=500, tokenizer=tokenizer).classify(texts[300:])
    right = np.mean([answer.label == label for answer, label in zip(answers, labels[300:])])
    assert right > (0.9 if pooling == "mean" else 0.6)
    assert trace.shares[1] > 0.05 and sum(trace.exited.values()) == 100


def test_bf16_and_accelerated_networks_are_taken() -> None:
    model = tiny_models.network("bert", "ForSequenceClassification")
    heads = heads_of(model, (1, 3))
    faster = nlp.accelerate(model, dtype="bf16")
    full, half = (EarlyExit(each, heads, confidence=NEVER).classify(ids(20))[0] for each in (model, faster))
    difference = np.abs(np.stack([a.probabilities - b.probabilities for a, b in zip(full, half)])).max()
    assert 0 < difference < 0.1
    assert nlp.restore(faster) is model and not hasattr(model, "acceleration")


def test_empty() -> None:
    model = tiny_models.network("bert")
    answers, trace = EarlyExit(model, heads_of(model, (2, 3))).classify([])
    assert answers == [] and trace.shares == {2: 0.0, 3: 0.0} and trace.token_layers == 0


def test_cut_texts_are_counted() -> None:
    model, tokenizer = tiny_models.bert(), tiny_models.tokenizer(model_max_length=12)
    (answer,), _ = EarlyExit(model, heads_of(model, (1, 2)), tokenizer=tokenizer).classify(["film " * 25])
    assert (answer.tokens, answer.truncated) == (12, 15)


def test_refusals() -> None:
    model = tiny_models.network("bert")
    heads = heads_of(model, (1, 3))
    with pytest.raises(ValueError, match=r"model must be an encoder of model_type bert, camembert, .*, got mpnet"):
        EarlyExit(tiny_models.network("mpnet"), heads)
    with pytest.raises(ValueError, match="model must be an encoder of .* got bert as a decoder"):
        EarlyExit(tiny_models.network("bert", is_decoder=True), heads)
    with pytest.raises(TypeError, match="model must be a Hugging Face network"):
        EarlyExit(torch.nn.Linear(2, 2), heads)
    with pytest.raises(ValueError, match="model must be in evaluation mode, but BertModel and"):
        EarlyExit(tiny_models.network("bert").train(), heads)
    with pytest.raises(ValueError, match="model must keep all tokens"):
        EarlyExit(nlp.accelerate(model, prune=nlp.Cascade(0.5)), heads)
    with pytest.raises(TypeError, match="heads must be ExitHeads of fit_exits, got dict"):
        EarlyExit(model, {})  # type: ignore[arg-type]
    for confidence in (-0.1, float("nan"), "0.9", True):
        with pytest.raises(ValueError, match="confidence must be a number of at least 0"):
            EarlyExit(model, heads, confidence=confidence)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tokens must be an integer of at least 1, got 0"):
        EarlyExit(model, heads, max_tokens=0)
    with pytest.raises(ValueError, match=r"heads must follow layers \(1, 2, 3\) .* got \(1, 2\), "):
        EarlyExit(model, heads_of(model, (1, 2)))
    with pytest.raises(ValueError, match=r"with weight \[2, 3, 32\] .* got \(1, 3\), \[2, 3, 16\] and"):
        EarlyExit(model, dataclasses.replace(heads, weight=heads.weight[:, :, :16]))
    with pytest.raises(
        ValueError, match=r"weight \[2, 3, 32\] and bias \[2, 3\] .* got \(1, 3\), \[2, 3, 32\] and \[2, 2\]"
    ):
        EarlyExit(model, dataclasses.replace(heads, bias=heads.bias[:, :2]))
    exits = EarlyExit(model, heads)
    with pytest.raises(TypeError, match="texts must be an iterable of texts, got a str"):
        exits.classify("film")
    with pytest.raises(TypeError, match=r"texts\[1\] must be token ids.* got a str, which needs a tokenizer"):
        exits.classify([[5], "film"])
    for bad in ([], [97], [-1], [5] * 261):
        with pytest.raises(ValueError, match=r"texts\[0\] must be 1 to 260 token ids below 97"):
            exits.classify([bad])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(layers=[0]), "layers must be whole numbers from 1 to 3, got"),
        (dict(layers=[4]), "layers must be whole numbers from 1 to 3, got"),
        (dict(layers=[1.0]), "layers must be whole numbers from 1 to 3, got"),
        (dict(pooling="max"), "pooling must be one of mean, cls, last, got 'max'"),
        (dict(labels=["a", "a"]), "labels must name two classes or more, got a"),
        (dict(labels=["a", "b", "c"]), "labels must be one for each text, got 3 for 2 texts"),
        (dict(regularization=0.0), "regularization must be above 0, got 0.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_fit_refusals(changes: dict[str, Any], message: str) -> None:
    given = {"layers": [1], "labels": ["a", "b"], **changes}
    with pytest.raises(ValueError, match=message):
        fit_exits(tiny_models.network("bert"), [[5, 6], [7]], **given)


def test_labels_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"labels\[1\] must be a str or an int, got NoneType"):
        fit_exits(tiny_models.network("bert"), [[5, 6], [7]], ["a", None], layers=[1])  # type: ignore[list-item]
