"""Labelled English of uneven length: newsgroups, newswire, film reviews. Read where it lies, never kept here."""

from __future__ import annotations

import csv
import functools
import io
import random
import re
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.data import Unavailable, data_file
from benchmarks.nlp import archives

_TAB = "orangecontrib/text/datasets"
_VADER_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_VADER_MOVIES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
# Larger than any file read here; a damaged header must not ask for all the memory.
_LARGEST = 64 << 20
_SEED = 0
# The workload that is a distribution of lengths, and needs no model.
LENGTHS = "lengths"


@dataclass(frozen=True)
class Texts:
    """Documents, and the class of each where there are classes."""

    texts: Sequence[str] = ()
    labels: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> Texts:
        """The first `count` documents."""
        return Texts(self.texts[:count], self.labels[:count])


@dataclass(frozen=True)
class Corpus:
    """A workload: documents to embed in the order in which they arrive, and others to train a classifier on.

    Attributes:
        documents: how many of `test` a measurement of speed embeds: several batches, or sorting by length gains little.
        length: 0, or cut the texts' tokens into pieces of exactly this many: no padding at all.
    """

    name: str
    shows: str
    test: Texts = field(repr=False)
    train: Texts = field(default_factory=Texts, repr=False)
    documents: int = 80
    length: int = 0

    @property
    def summary(self) -> str:
        """What it is, and how much of it there is."""
        parts = [f"{len(self.train)} to train on, {len(self.test)} to test"] if len(self.train) else []
        return ", ".join([self.shows, *parts])


def shuffled(texts: Texts, seed: int = _SEED) -> Texts:
    """The documents in another order, always the same: files keep the documents of a class together."""
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    return Texts([texts.texts[i] for i in order], [texts.labels[i] for i in order] if texts.labels else ())


def parse_tab(data: bytes, name: str) -> Texts:
    """The documents of a .tab file: three header lines, then class and text.

    Raises:
        Unavailable: it has no such header or columns.
    """
    limit = csv.field_size_limit(sys.maxsize)  # texts are longer than a field may be by default
    try:
        # The files do not quote: a quotation mark is a character of the text.
        rows = list(csv.reader(io.StringIO(data.decode("utf-8")), delimiter="\t", quoting=csv.QUOTE_NONE))
    finally:
        csv.field_size_limit(limit)
    if len(rows) < 3 or rows[0] != ["Category", "Text"]:
        raise Unavailable(f"{name} must start with the columns Category and Text and two more lines of header")
    body = [row for row in rows[3:] if row]
    for line, row in enumerate(body, 4):
        if len(row) != 2:
            raise Unavailable(f"{name}, row {line}: expected a class and a text, got {len(row)} columns")
    return Texts([text for _, text in body], [label for label, _ in body])


def parse_ratings(data: bytes, name: str) -> Texts:
    """The snippets of a file of number, mean rating and text; labelled by the rating's sign, without those rated 0."""
    texts, labels = [], []
    for number, line in enumerate(_lines(data), 1):
        parts = line.split("\t")
        try:
            _, rating, text = parts
            value = float(rating)
        except ValueError:
            raise Unavailable(f"{name}, line {number}: expected number, rating and text, got {line[:60]!r}") from None
        if value:
            texts.append(text)
            labels.append("positive" if value > 0 else "negative")
    return Texts(texts, labels)


def parse_tsv(data: bytes, name: str) -> Texts:
    """The sentences of a file whose columns are sentence and label."""
    lines = _lines(data)
    if not lines or lines[0].split("\t") != ["sentence", "label"]:
        raise Unavailable(f"{name} must start with the columns sentence and label")
    texts, labels = [], []
    for number, line in enumerate(lines[1:], 2):
        text, tab, label = line.rpartition("\t")
        if not tab:
            raise Unavailable(f"{name}, line {number}: expected a sentence and a label, got {line[:60]!r}")
        texts.append(text.strip())
        labels.append(label)
    return Texts(texts, labels)


def _lines(data: bytes) -> list[str]:
    """Not str.splitlines, which also breaks a line at characters that texts may hold."""
    return [line.rstrip("\r") for line in data.decode("utf-8").rstrip("\n").split("\n")]


def newsgroups() -> Corpus:
    """20 Newsgroups: 20 classes, half of the documents longer than 150 tokens, some longer than 512."""
    train, test = _orange("20newsgroups")
    return Corpus("20ng", "20 Newsgroups, 20 classes", test, train)


def reuters() -> Corpus:
    """Reuters R8: 8 classes, half of the documents longer than 80 tokens."""
    train, test = _orange("reuters-r8")
    return Corpus("r8", "Reuters R8, 8 classes", test, train, documents=64)


def movies() -> Corpus:
    """Snippets of film reviews that 20 people rated; the sign of the mean rating, 27 tokens in the mean."""
    path = archives.find(archives.VADER)
    outer = _from_tar(path.read_bytes(), _VADER_INNER, path.name)
    texts = shuffled(parse_ratings(_from_tar(outer, _VADER_MOVIES, _VADER_INNER), _VADER_MOVIES))
    split = len(texts) * 3 // 5
    train = texts.first(split)
    test = Texts(texts.texts[split:], texts.labels[split:])
    return Corpus("movie", "film review snippets, sign of the rating", test, train, documents=128)


def sst2() -> Corpus:
    """SST-2: phrases and sentences of film reviews, 13 tokens in the mean."""
    train, test = (
        shuffled(parse_tsv(data_file(f"nlp/sst2/{part}.tsv").read_bytes(), f"{part}.tsv")) for part in ("train", "dev")
    )
    return Corpus("sst2", "SST-2, positive or negative", test, train, documents=128)


def topics() -> Corpus:
    """Paragraphs of Python's own help, which is always there; no classes."""
    found = [" ".join(part.split()) for page in _pages() for part in re.split(r"\n{2,}", page)]
    return Corpus("topics", "paragraphs of Python's help", shuffled(Texts([part for part in found if len(part) > 40])))


def lengths() -> Corpus:
    """Whole pages of Python's help, 20 to some thousand words: lengths that are real, for values that are not."""
    return Corpus(
        LENGTHS, "as many tokens as pages of Python's help have words", shuffled(Texts(_pages())), documents=64
    )


def _pages() -> list[str]:
    try:
        from pydoc_data.topics import topics as pages
    except ImportError as error:  # some distributions leave it out
        raise Unavailable("this Python comes without its help texts (pydoc_data)") from error
    return list(pages.values())


def full_length(length: int) -> Corpus:
    """32 pieces of exactly `length` tokens, cut from 20 Newsgroups: nothing to gain from leaving padding out."""
    _, test = _orange("20newsgroups")
    return Corpus(f"32x{length}", f"32 pieces of {length} tokens", test, documents=32, length=length)


def _orange(name: str) -> tuple[Texts, Texts]:
    train, test = (
        shuffled(parse_tab(archives.member(archives.ORANGE, f"{_TAB}/{name}-{part}.tab"), f"{name}-{part}.tab"))
        for part in ("train", "test")
    )
    return train, test


def _from_tar(data: bytes, name: str, archive: str) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            info = tar.getmember(name)
            file = tar.extractfile(info)
            if file is None or info.size > _LARGEST:
                raise Unavailable(f"{name} in {archive} must be a file of at most {_LARGEST >> 20} MiB")
            return file.read()
    except (KeyError, tarfile.TarError) as error:
        raise Unavailable(f"{archive} holds no {name} ({error})") from error


CORPORA: dict[str, Callable[[], Corpus]] = {
    "20ng": newsgroups,
    "r8": reuters,
    "movie": movies,
    "sst2": sst2,
    "topics": topics,
    LENGTHS: lengths,
    "32x128": functools.partial(full_length, 128),
    "32x512": functools.partial(full_length, 512),
}
