"""The language part of the demonstration on a tiny network: its table is honest, its texts are always there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tqdm")
pytest.importorskip("typer")
pytest.importorskip("safetensors")

import nlp
from nlp.pretrained.cards import ModelCard
from trisparse.demo import language
from trisparse.demo.passages import passages

from ..nlp import tiny_models


def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of random numbers in place of the real one, which knows few words and tells texts apart."""
    model = tiny_models.bert(max_position_embeddings=256)
    model.card = ModelCard(name="tiny", description="Random numbers.", architecture="BertModel", max_tokens=256)
    tokenizer = tiny_models.tokenizer(256)
    monkeypatch.setattr(nlp, "load_pretrained", lambda name: model)
    monkeypatch.setattr(nlp, "load_tokenizer", lambda name: tokenizer)
    monkeypatch.setattr(language, "SECONDS", 0.0)


def data(folder: Path) -> Path:
    """A data folder with three sentences."""
    path = folder / "data" / "nlp" / "sst2"
    path.mkdir(parents=True)
    (path / "dev.tsv").write_text("sentence\tlabel\na good film\t1\nbad \t0\n\t1\nwe loved it\t1\n", encoding="utf-8")
    return folder / "data"


def test_language(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small_network(monkeypatch)
    monkeypatch.setenv("TRISPARSE_DATA", str(data(tmp_path)))
    said: list[str] = []
    found = language.language(tmp_path, said.append)
    dense, by_length, packed, *others = found.rows
    assert [row.way for row in found.rows[:3]] == ["dense", "dense, sorted by length", "packed"]
    assert [row.way for row in others[-2:]] == ["packed, merged to 50%", "packed, dropped to 50%"]
    assert dense.speedup is None and dense.cosine is None and dense.padding > by_length.padding > packed.padding == 0
    assert by_length.neighbours == packed.neighbours == 1.0 and packed.cosine > language.LOSSLESS
    for row in found.rows[1:]:
        assert row.agrees and row.speedup == pytest.approx(dense.median / row.median)
        assert len(row.seconds) == 2 and row.median == pytest.approx(sum(row.seconds) / 2)
    assert all(row.kept == 1.0 for row in found.rows[:-2]) and all(0.5 < row.kept < 1 for row in others[-2:])
    assert all(row.cosine < packed.cosine for row in others[-2:])
    assert all(len(cells) == len(language.HEADER) for cells in found.cells())
    assert [path.name for path in found.pictures] == ["dropped.png", "merged.png"]
    assert all(path.is_file() for path in found.pictures)
    # Its own count of tokens is what the rows' speeds are of.
    tokens = int(said[0].split(" tokens, ")[1].split()[0].replace(",", ""))
    assert dense.tokens_per_second == pytest.approx(tokens / dense.median)
    assert not any("sentences" in reason for reason in found.skipped)


def test_no_speed_up_for_a_wrong_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small_network(monkeypatch)
    accelerate = nlp.accelerate

    def wrong(model: Any, prune: Any = None, dtype: Any = "auto") -> Any:
        faster = accelerate(model, prune=prune, dtype=dtype)
        add = torch.nn.functional.one_hot(torch.tensor(3), 32) * 50.0
        faster.register_forward_hook(
            lambda module, args, out: setattr(out, "last_hidden_state", out[0] + add.to(out[0]))
        )
        return faster

    monkeypatch.setattr(nlp, "accelerate", wrong)
    found = language.language(tmp_path, lambda text: None)
    assert found.rows[1].agrees and found.rows[1].speedup is not None
    for row in found.rows[2:]:
        assert not row.agrees and row.speedup is None and row.cells()[3] == ""
        assert row.cells()[6].startswith("WRONG")
    assert found.finding.startswith("Not every way gave the right embeddings")


def test_without_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nlp.pretrained.MINILM_PACKAGE", "package_that_is_not_there")
    found = language.language(tmp_path, lambda text: None)
    assert found.rows == [] == found.pictures
    assert len(found.skipped) == 1 and "pip install 'trisparse[texts]'" in found.skipped[0]


def test_without_the_reference_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_network(monkeypatch)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    found = language.language(tmp_path, lambda text: None)
    assert found.rows == [] and "pydoc_data.topics" in found.skipped[0]


def test_passages(tmp_path: Path) -> None:
    pytest.importorskip("pydoc_data.topics")
    tokenizer = tiny_models.tokenizer(256)
    folder = data(tmp_path)
    texts, skipped, shown = passages(tokenizer, 256, folder)
    assert skipped == [] and (texts, skipped, shown) == passages(tokenizer, 256, folder)
    assert {"a good film", "bad", "we loved it"} < set(texts) and len(texts) == len(set(texts))
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert max(lengths) <= 256 and min(lengths) < 10 and len(texts) > 20
    assert len(shown) > 400 and "_" not in shown
    without, skipped, _ = passages(tokenizer, 256, tmp_path / "absent")
    assert len(without) == len(texts) - 3 and len(skipped) == 1 and "set TRISPARSE_DATA" in skipped[0]


def test_nearest_is_never_the_text_itself() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert language._nearest(vectors).tolist() == [1, 0, 3, 2]


def test_the_real_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    if language.NETWORK not in nlp.list_pretrained():
        pytest.skip(f"{language.NETWORK} is not installed")
    monkeypatch.setattr(language, "SECONDS", 0.0)
    monkeypatch.setattr("trisparse.demo.passages.N_SECTIONS", 8)
    monkeypatch.setattr("trisparse.demo.passages.N_SENTENCES", 8)
    found = language.language(tmp_path, lambda text: None)
    assert all(row.agrees for row in found.rows)
