"""Models of sentence-transformers, accelerated: the oracle is the model itself."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nlp
from nlp.sentences import places_of
from tests.nlp import tiny_models

pytest.importorskip("transformers", minversion="5")
st = pytest.importorskip("sentence_transformers", minversion="6")

TEXTS = ["the film was great", "bad", "", "this actor is not very good but the scene was funny " * 4, "we loved it"]


def model_of(folder: Path, pooling: str = "pooling_mode_mean_tokens", normalize: bool = True) -> Any:
    tiny_models.sentence_folder(folder, pooling={pooling: True}, normalize=normalize)
    return st.SentenceTransformer(str(folder), device="cpu")


def passes(model: Any) -> list[int]:
    """The tokens of each pass that the first layer of a model's network is given, filled as it runs."""
    seen: list[int] = []
    layer = next(module for name, module in model.named_modules() if name.endswith("layer.0"))
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0] * args[0].shape[1]))
    return seen


@pytest.mark.parametrize("pooling", ["pooling_mode_mean_tokens", "pooling_mode_cls_token", "pooling_mode_max_tokens"])
def test_encodes_the_same_without_padding(pooling: str, tmp_path: Path) -> None:
    model = model_of(tmp_path / "m", pooling)
    fast = nlp.accelerate(model)
    seen = passes(fast)
    want = model.encode(TEXTS)
    np.testing.assert_allclose(fast.encode(TEXTS), want, atol=1e-5, rtol=0)
    tokens = int(model.preprocess(TEXTS)["attention_mask"].sum())
    assert seen == [tokens] and type(fast) is type(model)
    assert nlp.restore(fast) is model
    assert np.array_equal(model.encode(TEXTS), want)
    assert fast.acceleration.changed[0].startswith("0.model.encoder.layer.0.")


@pytest.mark.parametrize(
    "options",
    [
        {"normalize_embeddings": True},
        {"truncate_dim": 8},
        {"prompt": "this film "},
        {"convert_to_tensor": True},
        {"output_value": "token_embeddings"},
        {"precision": "binary"},
        {"batch_size": 2},
    ],
    ids=str,
)
def test_arguments_of_encode_are_honoured(options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(tmp_path / "m")
    got, want = (each.encode(TEXTS, **options) for each in (nlp.accelerate(model), model))
    assert type(got) is type(want) and len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-5, rtol=0)


def test_no_texts(tmp_path: Path) -> None:
    fast = nlp.accelerate(model_of(tmp_path / "m"))
    assert len(fast.encode([])) == 0 and fast.encode("").shape == (32,)


def test_bf16_is_only_the_network_s(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m")
    fast = nlp.accelerate(model, dtype="bf16")
    got, want = fast.encode(TEXTS), model.encode(TEXTS)
    assert got.dtype == want.dtype == np.float32 and fast.acceleration.dtype == torch.bfloat16
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)  # normalised in fp32
    assert (got * want).sum(1).min() > 0.999


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pruned_tokens_are_in_no_mean(pooling: str, tmp_path: Path) -> None:
    key = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    model = model_of(tmp_path / "m", key, normalize=False)
    policy = nlp.Cascade(keep=0.5, min_tokens=4)
    fast = nlp.accelerate(model, prune=policy)
    # The other road to the same numbers: its own pooling over what is left.
    want = nlp.Embedder.load(tmp_path / "m", prune=policy).embed(TEXTS)
    np.testing.assert_allclose(fast.encode(TEXTS), want, atol=1e-5, rtol=0)
    assert abs(fast.encode(TEXTS) - model.encode(TEXTS)).max() > 1e-3
    assert fast.acceleration.task == {"mean": "pool", "cls": "cls"}[pooling]


def test_pruning_is_refused_where_it_is_not_known_what_is_read(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m", "pooling_mode_weightedmean_tokens")
    with pytest.raises(ValueError, match="prune must be None for a model that pools by weightedmean"):
        nlp.accelerate(model, prune=nlp.Cascade(keep=0.5))
    np.testing.assert_allclose(nlp.accelerate(model).encode(TEXTS), model.encode(TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_for_other_processes(copied: Any, tmp_path: Path) -> None:
    fast = nlp.accelerate(model_of(tmp_path / "m"))
    other = copied(fast)
    seen = passes(other)
    np.testing.assert_allclose(other.encode(TEXTS), fast.encode(TEXTS), atol=1e-6, rtol=0)
    assert len(seen) == 1 and seen[0] < 5 * 40


def test_trained_steps_behind_the_network_stay(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m")
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(2)
    model.append(Dense(in_features=32, out_features=6))
    for dtype in (None, "bf16"):
        fast = nlp.accelerate(model, dtype=dtype)
        assert fast[-1].linear.weight.dtype == torch.float32
        np.testing.assert_allclose(fast.encode(TEXTS), model.encode(TEXTS), atol=1e-5 if dtype is None else 0.05)


def test_cross_encoders(tmp_path: Path) -> None:
    tiny_models.save(tiny_models.bert("BertForSequenceClassification", num_labels=1), tmp_path / "c")
    model = st.CrossEncoder(str(tmp_path / "c"), device="cpu")
    fast = nlp.accelerate(model)
    pairs = [("the film", text) for text in TEXTS]
    np.testing.assert_allclose(fast.predict(pairs), model.predict(pairs), atol=1e-5)
    got, want = (each.rank("a great plot", TEXTS) for each in (fast, model))
    assert [row["corpus_id"] for row in got] == [row["corpus_id"] for row in want]
    seen = passes(fast)
    fast.predict(pairs)
    assert seen == [int(model.preprocess(pairs)["attention_mask"].sum())]


def test_sparse_encoders(tmp_path: Path) -> None:
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    tiny_models.save(tiny_models.bert("BertForMaskedLM"), tmp_path / "s")
    step = st.base.modules.Transformer(str(tmp_path / "s"), transformer_task="fill-mask")
    model = st.SparseEncoder(modules=[step, SpladePooling()], device="cpu")
    got, want = (each.encode(TEXTS).to_dense() for each in (nlp.accelerate(model), model))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_models_without_a_network_are_refused() -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    model = st.SentenceTransformer(modules=[StaticEmbedding(tiny_models.tokenizer(), embedding_dim=8)], device="cpu")
    with pytest.raises(ValueError, match="must hold a network of transformers, got SentenceTransformer of StaticEmb"):
        nlp.accelerate(model)


def test_twice_is_refused(tmp_path: Path) -> None:
    fast = nlp.accelerate(model_of(tmp_path / "m"))
    with pytest.raises(ValueError, match="must not be accelerated already"):
        nlp.accelerate(fast)


def test_a_network_that_its_step_calls_by_forward_is_packed(tmp_path: Path) -> None:
    """What people did by hand: sentence-transformers calls `forward` itself, which hooks do not see."""
    model = model_of(tmp_path / "m")
    want = model.encode(TEXTS)
    model[0].model = nlp.accelerate(model[0].model)
    seen = passes(model)
    np.testing.assert_allclose(model.encode(TEXTS), want, atol=1e-5, rtol=0)
    assert seen == [int(model.preprocess(TEXTS)["attention_mask"].sum())]


def test_places(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m")
    (place,) = places_of(model)
    assert (place.path, place.name, place.full) == ("0", "model", "0.model") and place.network is model[0].model
