"""The documents of many files that are left to answer, and how far an unfinished run has come with them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trisparse import terminal
from trisparse.texts.documents import Document, Log, Reading, read
from trisparse.texts.sources import Source

# Texts are handed to the model so many at a time: about this many seconds of work, so that results keep coming,
CHUNK_SECONDS = 10.0
# between these many characters, and no more than so many texts.
CHUNK_CHARACTERS = (1 << 16, 1 << 22)
CHUNK_ROWS = 8192


@dataclass
class State:
    """How far a run has come: what is in the results, as a mark says it.

    Attributes:
        file: number of the file whose document was answered last.
        row: of that document; -1 before the first.
        digest: of the documents of that file so far.
        answered: how many documents each word applies to: rows, tokens, truncated, empty.
        read: what readers counted in the files before that one.
        failed: numbers and errors of failed files before that one.
    """

    file: int = 0
    row: int = -1
    digest: str = ""
    answered: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, mark: Mapping[str, Any] | None) -> State:
        """From a mark; the beginning where there is none."""
        if mark is None:
            return cls()
        counters = {name: Counter(mark[name]) for name in ("answered", "read")}
        return cls(mark["file"], mark["row"], mark["digest"], failed=dict(mark["failed"]), **counters)

    def mark(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "file": self.file,
            "row": self.row,
            "digest": self.digest,
            "answered": dict(self.answered),
            "read": dict(self.read),
            "failed": self.failed,
        }


class ChangedError(ValueError):
    """A file is not what an unfinished run has read of it."""


class Feed:
    """The documents that are left to answer, file after file; a file that fails is noted, and the next one follows.

    Iterating gives pairs of a file's number and a document. `complain` hears of each failure, and
    of what else is wrong with a second argument.
    """

    def __init__(
        self, sources: Sequence[Source], reading: Reading, state: State, complain: Callable[..., None]
    ) -> None:
        self.sources = sources
        self.failed: dict[int, str] = {}
        self.counts: dict[int, Counter[str]] = {}
        self.digest = hashlib.blake2b(digest_size=16)
        self._log = Log()
        self._at = min(state.file, len(sources) - 1)
        self._sizes = [source.fingerprint() for source in sources]
        self._reading = reading
        self._start = state.file
        self._row = state.row
        self._digest = state.digest
        self._complain = complain

    def __iter__(self) -> Iterator[tuple[int, Document]]:
        for i in range(self._start, len(self.sources)):
            self._at, self._log = i, Log()
            self.counts[i] = self._log.counts
            documents = read(self.sources[i], self._reading, self._log)
            try:
                if i == self._start and self._row >= 0:
                    self._skip(documents, self.sources[i].name)
                for document in documents:
                    yield i, document
                    if i in self.failed:  # by a text that the model may not take
                        break
                else:
                    self._check_still(i)
            except ChangedError:
                raise
            except (ValueError, OSError) as error:
                self.fail(i, error)

    def fail(self, i: int, error: Exception) -> None:
        """File `i` failed."""
        self.failed[i] = terminal.one_line(error)
        self._complain(self.failed[i])

    def _check_still(self, i: int) -> None:
        """Say of a file that it is not what it was when the run began; a log that grows is no error."""
        if self.sources[i].fingerprint() != self._sizes[i]:
            self._complain(f"{self.sources[i].name} has changed while it was read", "warning")

    def share(self) -> str:
        """`, 43 % read`, where that is known."""
        sizes = [size[0] for size in self._sizes if size is not None]
        if len(sizes) < len(self.sources) or not sum(sizes):
            return ""
        closed = self._log.handle is not None and self._log.handle.closed
        current = sizes[self._at] if closed else self._log.position
        return f", {(sum(sizes[: self._at]) + current) / sum(sizes):.0%} read"

    def _skip(self, documents: Iterator[Document], name: str) -> None:
        """Past what an unfinished run has answered, which must be what it was."""
        row = -1
        try:
            for document in documents:
                row = document.row
                add(self.digest, document)
                if row >= self._row:
                    break
        except (ValueError, OSError) as error:
            raise ChangedError(f"{self._changed(name)} ({terminal.one_line(error)})") from None
        if row != self._row or self.digest.hexdigest() != self._digest:
            raise ChangedError(self._changed(name))

    @staticmethod
    def _changed(name: str) -> str:
        return (
            f"{name} no longer holds, when it is read with these options, what an unfinished run read from it: restore "
            "the file, or start anew with --overwrite"
        )


def add(digest: Any, document: Document) -> None:
    """Take a document into a digest."""
    for part in (str(document.row), document.id or "", document.text):
        data = part.encode("utf-8")
        digest.update(b"%d " % len(data))
        digest.update(data)


def check_unchanged(done: Sequence[Source], now: Sequence[Any], before: Sequence[Any] | None) -> None:
    """Raises ChangedError where one of the files that are done is not what it was."""
    for source, new, old in zip(done, now, before or ()):
        if new != old:
            raise ChangedError(
                f"{source.name} has changed since an unfinished run read it: restore the file, or start anew with "
                "--overwrite"
            )


class Chunks:
    """Documents in lists of about CHUNK_SECONDS of work each."""

    def __init__(self, feed: Feed) -> None:
        self._documents = iter(feed)
        self._characters = CHUNK_CHARACTERS[0]

    def __iter__(self) -> Iterator[list[tuple[int, Document]]]:
        return self

    def __next__(self) -> list[tuple[int, Document]]:
        chunk: list[tuple[int, Document]] = []
        characters = 0
        for entry in self._documents:
            chunk.append(entry)
            characters += len(entry[1].text)
            if characters >= self._characters or len(chunk) >= CHUNK_ROWS:
                break
        if not chunk:
            raise StopIteration
        return chunk

    def took(self, characters: int, seconds: float) -> None:
        """The model took so long: the next list is cut to it."""
        wanted = int(characters / max(seconds, 1e-3) * CHUNK_SECONDS)
        self._characters = min(max(wanted, CHUNK_CHARACTERS[0]), CHUNK_CHARACTERS[1])
