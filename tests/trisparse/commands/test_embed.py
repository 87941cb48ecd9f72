"""`trisparse embed`: the file it writes, what a stopped run leaves, and what it says of what it cannot use."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("pyarrow")

import pyarrow as pa
from pyarrow import parquet as pq

from common_models import dtypes
from nlp import prune
from trisparse.output import sinks
from trisparse.output.spool import Spool
from trisparse.texts import feed, sources
from trisparse.texts import run as texts
from trisparse.texts.reading import Reading

from ..stand_ins import SIZE, Stub, answer, start

Run = Callable[..., Any]
LINES = [f"line {i} " + "word " * (i % 7) for i in range(50)]


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> type[Stub]:
    """The commands load this."""
    import nlp.texts.classifier
    import nlp.texts.embedder

    fresh = type("Fresh", (Stub,), {"loaded": [], "seen": []})
    monkeypatch.setattr(nlp.texts.embedder, "Embedder", fresh)
    monkeypatch.setattr(nlp.texts.classifier, "TextClassifier", fresh)
    monkeypatch.setattr(feed, "CHUNK_ROWS", 7)
    return fresh


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def check(path: Path, expected: list[tuple[str, int, str]]) -> None:
    """The file holds these (file name, row, text)."""
    found = rows(path)
    assert [(Path(row["file"]).name, row["row"]) for row in found] == [entry[:2] for entry in expected]
    for row, (_, _, line) in zip(found, expected):
        right = answer(line, 256)
        np.testing.assert_array_equal(np.float32(row["embedding"]), right.vector)
        assert row["tokens"] == right.tokens and row["truncated"] == (right.truncated > 0)


def fails(result: Any, *words: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("trisparse: error: ") or code == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def expected(lines: list[str], name: str = "a.txt") -> list[tuple[str, int, str]]:
    return [(name, i, line) for i, line in enumerate(lines)]


@pytest.mark.parametrize("ahead", [1, 20])
def test_the_file(trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub], ahead: int) -> None:
    stub.ahead = ahead
    out = tmp_path / "out.parquet"
    result = trisparse("embed", text, "-o", out, "--model", "m", "--dtype", "bf16", "--batch-tokens", 99)
    assert result.exit_code == 0, result.stderr
    check(out, expected(LINES))
    schema = pq.read_schema(out)
    assert schema.names == ["file", "row", "embedding", "tokens", "truncated"]
    assert str(schema.field("embedding").type) == f"fixed_size_list<element: float>[{SIZE}]"
    assert {key.decode(): value.decode() for key, value in schema.metadata.items()} == {
        "trisparse.model": "m",
        "trisparse.dtype": "bf16",
        "trisparse.version": "0.1.0",
        "trisparse.overflow": "truncate",
        "trisparse.max_length": "256",
    }
    assert stub.loaded == [
        {"name": "m", "dtype": "bf16", "prune": None, "download": False, "overflow": "truncate", "max_tokens": 99}
    ]
    assert result.stdout.startswith("50 rows, ") and f"wrote {out}" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "out.parquet"]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_is_the_faster_dtype_of_this_machine(
    trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub], monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.setattr(dtypes, "multiplies_bf16", lambda device: has_bf16)
    out = tmp_path / "out.parquet"
    stopped(trisparse, stub, "embed", text, "-o", out)
    used = "bf16" if has_bf16 else "fp32"
    assert trisparse("embed", text, "-o", out, "--dtype", used).exit_code == 0  # the same settings
    assert [load["dtype"] for load in stub.loaded] == [used, used]
    assert pq.read_schema(out).metadata[b"trisparse.dtype"] == used.encode()


@pytest.mark.parametrize(
    "given, written, policy",
    [
        ("merge:0.70", "merge:0.7", prune.Merge(0.7)),
        ("cascade", "cascade:0.5", prune.Cascade(0.5)),
        ("mass:0.95", "mass:0.95", prune.Mass(0.95)),
        ("threshold:0.25", "threshold:0.25", prune.Threshold(0.25)),
    ],
)
def test_pruning(
    trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub], given: str, written: str, policy: prune.Policy
) -> None:
    out = tmp_path / "out.parquet"
    command = ["embed", text, "-o", out, "--prune"]
    stopped(trisparse, stub, *command, given)
    fails(trisparse("embed", text, "-o", out), f"other settings (prune {written!r}, now None)")
    result = trisparse(*command, written)
    assert result.exit_code == 0, result.stderr
    check(out, expected(LINES))
    assert [load["prune"] for load in stub.loaded] == [policy, policy]
    assert pq.read_schema(out).metadata[b"trisparse.prune"] == written.encode()
    assert [row["kept"] for row in rows(out)] == [2] * 50
    tokens = sum(row["tokens"] for row in rows(out))
    assert f"50 rows, {tokens} tokens (100 kept to the end, {100 / tokens:.0%}), " in result.stdout


def test_several_files_and_formats(trisparse: Run, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.csv").write_text("name,text\nx,one\ny,two three\n")
    (folder / "b.jsonl").write_text('{"text": "four", "name": 5}\n')
    (folder / "c.csv").write_text("name,text\n")
    pq.write_table(pa.table({"text": ["five", "six"], "name": [None, "z"]}), folder / "d.parquet")
    out = folder / "out.parquet"
    for again in ([], ["--overwrite"]):  # the output is no input
        result = trisparse("embed", folder, "-o", out, "--id-column", "name", *again)
        assert result.exit_code == 0, result.stderr
        names = ["a.csv", "a.csv", "b.jsonl", "d.parquet", "d.parquet"]
        lines = ["one", "two three", "four", "five", "six"]
        check(out, list(zip(names, [0, 1, 0, 0, 1], lines)))
        assert [row["id"] for row in rows(out)] == ["x", "y", "5", None, "z"]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
def test_empty_input(trisparse: Run, tmp_path: Path, name: str) -> None:
    path, out = tmp_path / name, tmp_path / "out.parquet"
    if name == "a.parquet":
        pq.write_table(pa.table({"text": pa.array([], "string")}), path)
    else:
        path.touch()
    result = trisparse("embed", path, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert rows(out) == [] and "0 rows, 0 tokens" in result.stdout
    assert pq.read_schema(out).field("embedding").type.list_size == SIZE


def test_counts(trisparse: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out.parquet"
    lines = [{"text": "a " * 20}, {"text": ""}, {"text": " "}, {"text": None}, {"txt": 1}, {"text": "[CLS] [SEP]"}]
    path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + b'{"text": "\xff"}\n')
    options = ["--nulls", "skip", "--skip-bad", "--invalid", "replace", "--max-length", "10"]
    result = trisparse("embed", path, "-o", out, *options)
    assert result.exit_code == 0, result.stderr
    assert [(row["row"], row["tokens"], row["truncated"]) for row in rows(out)] == [
        (0, 10, True),
        (1, 2, False),
        (2, 2, False),
        (5, 4, False),
        (6, 3, False),
    ]
    words = "1 truncated, 2 empty, 1 skipped as null, 1 skipped as bad lines, 1 with invalid UTF-8 replaced"
    assert words in result.stdout


def test_texts_that_are_too_long(trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub]) -> None:
    out, other = tmp_path / "out.parquet", tmp_path / "b.txt"
    other.write_text("short\n")
    for overflow in ("truncate", "split"):
        trisparse("embed", text, "-o", out, "--overflow", overflow, "--max-length", 9, "--overwrite")
        assert stub.loaded[-1]["overflow"] == overflow
    assert len(rows(out)) == 50
    result = trisparse("embed", text, other, "-o", out, "--overflow", "error", "--max-length", 9, "--overwrite")
    fails(
        result,
        "a.txt, row 6: longer than the model reads; --overflow truncate or --overflow split accepts",
        "1 of 2 files failed",
        code=1,
    )
    assert [(Path(row["file"]).name, row["row"]) for row in rows(out)] == [
        *[("a.txt", i) for i in range(6)],
        ("b.txt", 0),
    ]


def test_a_text_that_the_model_cannot_take(trisparse: Run, tmp_path: Path) -> None:
    for name, lines in {"a.txt": "one\nno meaning\ntwo\n", "b.txt": "three\n"}.items():
        (tmp_path / name).write_text(lines)
    out = tmp_path / "out.parquet"
    result = trisparse("embed", tmp_path, "-o", out)
    fails(result, "a.txt, row 1: has no token", "1 of 2 files failed", code=1)
    check(out, [("a.txt", 0, "one"), ("b.txt", 0, "three")])


def test_one_bad_file_of_several(trisparse: Run, text: Path, tmp_path: Path) -> None:
    bad, last, out = tmp_path / "b.txt", tmp_path / "c.txt", tmp_path / "out.parquet"
    bad.write_bytes(b"fine\nb\xffd\nunread\n")
    last.write_text("last")
    (tmp_path / "d.parquet").write_bytes(b"none")
    result = trisparse("embed", text, bad, last, tmp_path / "d.parquet", "-o", out)
    words = f"2 of 4 files failed, and the output holds what came before their errors: {bad}, {tmp_path / 'd.parquet'}"
    fails(result, "b.txt, line 2: not UTF-8 at byte 6", words, code=1)
    check(out, [*expected(LINES), ("b.txt", 0, "fine"), ("c.txt", 0, "last")])
    failed = json.loads(pq.read_schema(out).metadata[b"trisparse.failed"])
    assert list(failed) == [str(bad), str(tmp_path / "d.parquet")] and "not UTF-8" in failed[str(bad)]


def test_a_bad_file_put_right_goes_on(trisparse: Run, tmp_path: Path, stub: type[Stub]) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "out.parquet"
    path.write_bytes(b"one\ntwo\nb\xffd\nlast\n")
    result = trisparse("embed", path, "-o", out)
    words = "was not written. Correct the file, then run the same command again to continue after the 2 rows"
    fails(result, "line 3: not UTF-8", words, code=1)
    assert not out.exists()
    path.write_bytes(b"one\ntwo\ngood\nlast\n")
    result = trisparse("embed", path, "-o", out)
    assert result.exit_code == 0 and "continuing after 2 rows" in result.stderr, result.output
    check(out, expected(["one", "two", "good", "last"]))
    assert stub.seen == ["one", "two", "good", "last"]
    # Or the same file, read with more patience.
    path.write_bytes(b"one\ntwo\nb\xffd\nlast\n")
    fails(trisparse("embed", path, "-o", out, "--overwrite"), "line 3: not UTF-8", code=1)
    result = trisparse("embed", path, "-o", out, "--invalid", "skip")
    assert result.exit_code == 0, result.stderr
    check(out, [("a.txt", 0, "one"), ("a.txt", 1, "two"), ("a.txt", 3, "last")])


def test_nothing_readable_loads_no_model(trisparse: Run, tmp_path: Path, stub: type[Stub]) -> None:
    path, out = tmp_path / "a.csv", tmp_path / "out.parquet"
    path.write_text("sentence,label\na,1\n")
    fails(trisparse("embed", path, "-o", out), "no column 'text', it has 'sentence', 'label'", code=1)
    words = "did you mean 'sentence'? Name it with --column"
    fails(trisparse("embed", path, "-o", out, "--column", "sentense"), words, code=1)
    assert stub.loaded == [] and sorted(p.name for p in tmp_path.iterdir()) == ["a.csv"]


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("stop_after", [0, 1, 7, 49, 52, 60])
def test_a_stopped_run_goes_on(
    trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub], stop_after: int, ahead: int
) -> None:
    out, other = tmp_path / "out.parquet", tmp_path / "b.txt"
    other.write_text("\n".join(LINES[:9]))
    (tmp_path / "c.txt").touch()
    stub.stop_after, stub.ahead = stop_after, ahead
    command = ["embed", text, tmp_path / "c.txt", other, "-o", out]
    result = trisparse(*command)
    if stop_after == 60:  # more than there are
        assert result.exit_code == 0
    else:
        assert result.exit_code == 130 and not out.exists(), result.output
        assert ("Run the same command again to continue" in result.stderr) == (stop_after > 0)
        assert (tmp_path / "out.parquet.partial").exists() == (stop_after > 0)
        stub.stop_after = None
        result = trisparse(*command)
        assert result.exit_code == 0, result.stderr
        assert f"{59:,} rows" in result.stdout
    check(out, [*expected(LINES), *expected(LINES[:9], "b.txt")])
    assert stub.seen == [*LINES, *LINES[:9]]  # nothing twice
    assert not list(tmp_path.glob("out.parquet.*"))


def stopped(trisparse: Run, stub: type[Stub], *command: object, after: int = 20) -> None:
    stub.stop_after = after
    assert trisparse(*command).exit_code == 130
    stub.stop_after = None


def test_a_stopped_run_with_other_settings(trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub]) -> None:
    out = tmp_path / "out.parquet"
    command = ["embed", text, "-o", out]
    stopped(trisparse, stub, *command)
    fails(
        trisparse(*command, "--model", "other"), "other settings (model 'all-minilm-l6-v2', now 'other')", "--overwrite"
    )
    fails(trisparse(*command, "--max-length", 8), "max-length None, now 8")
    (tmp_path / "b.txt").touch()
    fails(trisparse("embed", text, tmp_path / "b.txt", "-o", out), "files [")
    assert trisparse(*command, "--batch-tokens", 5).exit_code == 0  # what changes no number may change
    check(out, expected(LINES))


def test_a_stopped_run_whose_text_has_changed(trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub]) -> None:
    out, first = tmp_path / "out.parquet", tmp_path / "0.txt"
    first.write_text("first")
    command = ["embed", first, text, "-o", out]
    stopped(trisparse, stub, *command)
    for lines in (["another", *LINES], [LINES[0] + "!", *LINES[1:]], LINES[:10], []):
        text.write_text("\n".join(lines) + "\n" * bool(lines))
        fails(trisparse(*command), "a.txt no longer holds", "--overwrite")
    text.write_text("\n".join([*LINES[:30], "new"]))  # what was not read yet may change
    first.write_text("other")
    fails(trisparse(*command), "0.txt has changed since an unfinished run read it")
    os.utime(first, ns=(1, 1))
    assert trisparse(*command, "--overwrite").exit_code == 0
    check(out, [("0.txt", 0, "other"), *expected([*LINES[:30], "new"])])


def test_a_model_that_has_changed(trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub]) -> None:
    folder, out = tmp_path / "model", tmp_path / "out.parquet"
    folder.mkdir()
    (folder / "model.safetensors").write_text("a")
    command = ["embed", text, "-o", out, "--model", folder]
    stopped(trisparse, stub, *command)
    (folder / "model.safetensors").write_text("ab")
    fails(trisparse(*command), "other settings (model files")


def test_an_older_file_stays(trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub]) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(b"precious")
    fails(trisparse("embed", text, "-o", out), "out.parquet exists; --overwrite replaces it")
    stopped(trisparse, stub, "embed", text, "-o", out, "--overwrite")
    assert out.read_bytes() == b"precious"
    result = trisparse("embed", text, "-o", out)
    assert result.exit_code == 0, result.stderr
    check(out, expected(LINES))
    stopped(trisparse, stub, "embed", text, "-o", out, "--overwrite", after=0)
    fails(trisparse("embed", text, "-o", out), "exists")


def test_the_share_that_was_read(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x" * 9 + "\n")
    found = feed.Feed(sources.plan([str(tmp_path)]), Reading(), feed.State(), print)
    shares = [found.share() for _ in found]
    assert shares == [", 50% read", ", 100% read"] and found.share() == ", 100% read"
    assert feed.Feed(sources.plan(["-"]), Reading(), feed.State(), print).share() == ""


def test_row_groups(trisparse: Run, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "GROUP_BYTES", 1000)
    monkeypatch.setattr(texts, "FLUSH_ROWS", 3)
    out = tmp_path / "out.parquet"
    assert trisparse("embed", text, "-o", out).exit_code == 0
    check(out, expected(LINES))
    assert pq.ParquetFile(out).metadata.num_row_groups > 5


def test_a_full_disk(
    trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "FLUSH_ROWS", 4)
    out = tmp_path / "out.parquet"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        fails_late = trisparse("embed", text, "-o", out)
    assert fails_late.exit_code == 2 and f"No space left on device: '{out}'" in fails_late.stderr
    assert "Run the same command again to continue (50 rows are in" in fails_late.stderr
    assert not out.exists()
    assert trisparse("embed", text, "-o", out).exit_code == 0
    check(out, expected(LINES))
    assert stub.seen == LINES  # nothing twice
    count = []

    def sync(file: int) -> None:
        count.append(file)
        if len(count) > 3:
            full()

    with monkeypatch.context() as patch:
        patch.setattr("trisparse.output.spool.os.fsync", sync)
        result = trisparse("embed", text, "-o", out, "--overwrite")
    assert result.exit_code == 2 and f"No space left on device: '{out}.partial'" in result.stderr, result.stderr
    assert "Run the same command without --overwrite to continue (12 rows are in" in result.stderr
    assert trisparse("embed", text, "-o", out).exit_code == 0
    check(out, expected(LINES))


def test_a_file_that_changes_while_it_is_read(trisparse: Run, tmp_path: Path, stub: type[Stub]) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "out.parquet"
    path.write_text("\n".join(LINES) + "\n")

    def slow(self: Stub, line: str) -> Any:
        if line == LINES[3]:
            with path.open("a") as file:
                file.write("one more\n")
        return answer(line, 256)

    stub._answer = slow  # type: ignore[method-assign]
    result = trisparse("embed", path, "-o", out)
    assert result.exit_code == 0 and "trisparse: warning: " in result.stderr
    assert "a.txt has changed while it was read" in result.stderr
    assert len(rows(out)) in (50, 51)


def test_closed_pipes(text: Path, tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("needs file descriptors of POSIX")
    for command, closed, words, code in (
        (["embed", "-", "-o", tmp_path / "out.parquet"], 0, "error: -: standard input is closed", 1),
        (["classify-text", text, "--model", "m"], 1, "error: standard output is closed: add --output", 2),
    ):
        process = start(*command, preexec_fn=functools.partial(os.close, closed))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code and words in errors and "Traceback" not in errors, errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


@pytest.mark.parametrize(
    "format, data",
    [("txt", "one\ntwo"), ("csv", "text,n\none,1\ntwo,2\n"), ("jsonl", '{"text": "one"}\n{"text": "two"}')],
)
def test_stdin(tmp_path: Path, format: str, data: str) -> None:
    from typer.testing import CliRunner

    from trisparse.cli import app

    out = tmp_path / "out.parquet"
    result = CliRunner().invoke(app, ["embed", "-", "-o", str(out), "--format", format], input=data)
    assert result.exit_code == 0, result.stderr
    check(out, expected(["one", "two"], "-"))


@pytest.mark.parametrize(
    "options, words",
    [
        (["-o", "out.csv"], "--output must have a suffix of .parquet, got out.csv"),
        (["-o", "none/out.parquet"], "none/out.parquet: its folder none does not exist"),
        (["-o", "."], "--output must have a suffix"),
        (["--dtype", "fp8"], "--dtype must be one of auto, fp32, bf16, got 'fp8'"),
        (["--prune", "cascad:0.5"], "--prune must be one of cascade[:KEEP], merge[:KEEP], mass[:SHARE], threshold"),
        (["--prune", "cascad:0.5"], "got 'cascad:0.5'; did you mean 'cascade'?"),
        (["--prune", "merge:"], "--prune merge must be written merge[:KEEP], got 'merge:'"),
        (["--prune", "merge:half"], "--prune merge:half: a finite number was expected after the colon, got 'half'"),
        (["--prune", "mass:nan"], "--prune mass:nan: a finite number was expected"),
        (["--prune", "merge:1.5"], "--prune merge:1.5: keep must lie above 0 and be at most 1, got 1.5"),
        (["--overflow", "wrap"], "--overflow must be one of truncate, split, error, got 'wrap'"),
        (["--invalid", "ignore"], "--invalid must be one of"),
        (["--nulls", "ignore"], "--nulls must be one of"),
        (["--column", "text"], "--column text: a txt file has no columns"),
        (["--id-column", "n"], "--id-column n: a txt file has no columns"),
        (["--no-quotes"], "--no-quotes is for csv and tsv files"),
        (["--no-header"], "--no-header is for csv and tsv files"),
        (["--format", "csv", "--whole-file"], "--whole-file is for txt files"),
        (["--format", "csv", "--no-header"], "give the number of the text's column"),
        (["--model", "unknown"], "error: --model must be a folder, a file or one of stub, got 'unknown'; --download"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be(
    trisparse: Run, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output = [] if "-o" in options else ["-o", "out.parquet"]
    fails(trisparse("embed", text, *output, *options), words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


def test_writing_needs_pyarrow(trisparse: Run, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    fails(
        trisparse("embed", text, "-o", tmp_path / "o.parquet"), "writing parquet files needs pyarrow", "trisparse[nlp]"
    )


def test_debug_shows_the_traceback(trisparse: Run, tmp_path: Path) -> None:
    result = trisparse("embed", tmp_path / "none.txt", "-o", tmp_path / "o.parquet", "--debug")
    assert result.exit_code == 2 and "Traceback" in result.stderr and "none.txt: no such file" in result.stderr


def test_a_model_that_breaks(
    trisparse: Run, text: Path, tmp_path: Path, stub: type[Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "FLUSH_ROWS", 4)
    out = tmp_path / "out.parquet"
    stub.stop_after, stub.error = 11, RuntimeError("out of memory")
    result = trisparse("embed", text, "-o", out)
    assert str(result.exception) == "out of memory"
    assert "Run the same command again to continue (8 rows are in" in result.stderr
    stub.stop_after = None
    assert trisparse("embed", text, "-o", out).exit_code == 0
    check(out, expected(LINES))


def test_two_runs_at_once(trisparse: Run, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt), Spool(out, {}):
        for overwrite in ([], ["--overwrite"]):
            fails(
                trisparse("embed", text, "-o", out, *overwrite), "out.parquet.partial is being written by another run"
            )
        raise KeyboardInterrupt
    assert trisparse("embed", text, "-o", out).exit_code == 0


def test_the_lock_holds_until_the_file_is_in_place(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out.parquet"

    def convert(pieces: Path, whole: Path) -> None:
        with pytest.raises(FileExistsError, match="is being written by another run"):
            Spool(out, {})
        whole.write_bytes(pieces.read_bytes())

    with Spool(out, {}) as spool:
        spool.append(b"rows", {})
        spool.finish(convert)
    assert out.read_bytes() == b"rows" and [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to tell a process's peak of memory")
    line = json.dumps({"text": "lorem ipsum " * 2000}) + "\n"
    peaks = []
    for megabytes in (1, 60):
        path = tmp_path / f"{megabytes}.jsonl"
        path.write_text(line * (megabytes * 1_000_000 // len(line)))
        with start("embed", path, "-o", tmp_path / f"{megabytes}.parquet") as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        peaks.append(int(errors.split()[-1]))
    assert peaks[1] - peaks[0] < 30, f"MiB for 1 and 60 MB: {peaks}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "out.parquet"
    lines = [f"line {i}" for i in range(2000)]
    path.write_text("\n".join(lines))
    command = ["embed", path, "-o", out]
    process = start(*command, seconds=0.005, flush=0.1)
    progress = tmp_path / "out.parquet.progress"
    deadline = time.monotonic() + 60
    while not (progress.exists() and progress.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), errors
    assert not out.exists()
    done = json.loads(progress.read_text().splitlines()[-1])["mark"]["answered"]["rows"]
    assert 0 < done < 2000
    if number != signal.SIGKILL:
        assert f"Stopped. Run the same command again to continue ({done:,} rows are in {out}.partial)." in errors
    with start(*command) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and f"continuing after {done:,} rows" in errors, errors
    check(out, expected(lines))
