"""A run of `trisparse embed` or `trisparse classify-text`: one file of results, stop and resume."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from trisparse import terminal
from trisparse.output.sinks import Sink
from trisparse.output.spool import Spool
from trisparse.output.stopping import Stop, stopped, stopping
from trisparse.texts.documents import Document, Reading
from trisparse.texts.feed import Chunks, Feed, State, add, check_unchanged
from trisparse.texts.job import Model, TextJob
from trisparse.texts.sources import Source

# A process that is killed loses no more than this much finished work.
FLUSH_SECONDS = 2.0
FLUSH_ROWS = 4096
FLUSH_CHARACTERS = 1 << 22
TOO_LONG = "longer than the model reads; --overflow truncate or --overflow split accepts such texts"


class _TextError(Exception):
    """A text that a model cannot take."""


@dataclass(frozen=True)
class Summary:
    """What became of a run.

    Attributes:
        failed: errors of files by their numbers.
        counts: rows, tokens, kept (tokens left at the end, where any were removed), and whatever else is worth a word.
        seconds, tokens: of this run alone, without the unfinished one that it went on from.
    """

    failed: Mapping[int, str]
    counts: Mapping[str, int]
    seconds: float
    tokens: int

    def line(self) -> str:
        """`6,735 rows, 171,211 tokens (90,123 kept to the end, 53%), 12.31 s, 13,908 tokens/s; 3 truncated`"""
        tokens = f"{self.counts['tokens']:,} tokens"
        if "kept" in self.counts:
            kept = self.counts["kept"]
            tokens += f" ({kept:,} kept to the end, {kept / max(self.counts['tokens'], 1):.0%})"
        found = f"{self.counts['rows']:,} rows, {tokens}, {terminal.seconds(self.seconds)}"
        if self.tokens:
            found += f", {self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s"
        words = [f"{n:,} {name}" for name, n in self.counts.items() if n and name not in ("rows", "tokens", "kept")]
        return "; ".join([found, ", ".join(words)]) if words else found


def run(job: TextJob, sources: Sequence[Source]) -> Summary:
    """Answer all documents of all files.

    A file that cannot be read to its end is reported on stderr and noted in the summary; what came before the error
    stays in the results. Where no file could be read to its end there are no results, only what the next run continues
    from.

    Raises:
        ValueError, OSError: what concerns all files: the model, the place to write to, a file that has changed since an
            unfinished run.
        KeyboardInterrupt: Ctrl-C, or told to end; what was answered is kept for the next run.
    """
    with ExitStack() as stack:
        spool = None
        if job.output is not None:
            settings = {**job.settings, "files": [source.name for source in sources]}
            notes = [source.fingerprint() for source in sources]
            spool = stack.enter_context(Spool(job.output, settings, job.overwrite, notes))
            state = State.of(spool.mark)
            check_unchanged(sources[: state.file], notes, spool.found)
        else:
            state = State()
        feed = Feed(sources, job.reading, state, terminal.complain)
        chunks = Chunks(feed)
        first = next(chunks, [])  # what cannot be read should not wait for the model
        if not first and len(feed.failed) + len(state.failed) == len(sources):
            return Summary({**_failed(state), **feed.failed}, _counts(state, feed), 0.0, 0)
        if state.answered["rows"]:
            print(f"continuing after {state.answered['rows']:,} rows that were done before", file=sys.stderr)
        model = job.load()
        sink = job.sink(model)
        worker = _Worker(job, feed, state, sink, spool)
        started = time.perf_counter()
        bar = stack.enter_context(tqdm(unit="row", disable=None, mininterval=0.5, total=_total(sources, job.reading)))
        bar.update(state.answered["rows"])
        before = state.answered["tokens"]
        with stopping() as stop:
            try:
                for chunk in itertools.chain([first], chunks):
                    begun = time.perf_counter()
                    worker.work(chunk, model, stop, bar)
                    chunks.took(sum(len(document.text) for _, document in chunk), time.perf_counter() - begun)
                failed = {**_failed(state), **feed.failed}
                with stop.later():
                    worker.flush(last=len(failed) < len(sources))
            except KeyboardInterrupt:
                with stop.later(again=False):
                    worker.flush()
                _say_stopped(spool, job.overwrite)
                raise
            except Exception:
                _say_stopped(spool, job.overwrite)
                raise
            tokens = state.answered["tokens"] - before
            seconds = time.perf_counter() - started
            bar.close()
            if spool is not None and len(failed) < len(sources):
                metadata = dict(job.metadata(model))
                if failed:
                    metadata["failed"] = json.dumps({sources[i].name: error for i, error in failed.items()})
                try:
                    with stop.later(again=False):
                        spool.finish(sink.converter(metadata))
                except Exception:
                    _say_stopped(spool, job.overwrite)
                    raise
        return Summary(failed, _counts(state, feed), seconds, tokens)


def _failed(state: State) -> dict[int, str]:
    return {int(i): error for i, error in state.failed.items()}


def _counts(state: State, feed: Feed) -> dict[str, int]:
    """What was counted in answering and in reading."""
    read = sum((feed.counts[i] for i in feed.counts if i >= state.file), Counter(state.read))
    return {"rows": 0, "tokens": 0, **state.answered, **read}


class _Worker:
    """Answers in order, to rows, to the disk."""

    def __init__(self, job: TextJob, feed: Feed, state: State, sink: Sink, spool: Spool | None) -> None:
        self._job = job
        self._feed = feed
        self._state = state
        self._sink = sink
        self._spool = spool
        self._digest = feed.digest
        self._pending: list[tuple[int, Document, Any]] = []
        self._head = sink.head if spool is not None and spool.mark is None else b""
        self._refused: set[int] = set()
        self._flushed = self._began = time.perf_counter()
        self._tokens = self._characters = 0

    def work(self, chunk: Sequence[tuple[int, Document]], model: Model, stop: Stop, bar: tqdm) -> None:
        """Answer a list of documents."""
        if not chunk:
            return
        at = 0
        while at < len(chunk):
            try:
                for i, document, answer in self._answers(chunk[at:], model):
                    at += 1
                    self._take(i, document, answer, stop, bar)
                break
            except _TextError as error:  # what came before it was answered
                i, document = chunk[at]
                if i not in self._refused:
                    self._refuse(i, document, str(error))
                at += 1

    @staticmethod
    def _answers(chunk: Sequence[tuple[int, Document]], model: Model) -> Iterator[tuple[int, Document, Any]]:
        answers = model.stream(document.text for _, document in chunk)
        for i, document in chunk:
            try:
                answer = next(answers)
            except ValueError as error:
                raise _TextError(re.sub(r"^texts\[\d+\]:? ", "", terminal.one_line(error))) from error
            yield i, document, answer

    def _take(self, i: int, document: Document, answer: Any, stop: Stop, bar: tqdm) -> None:
        bar.update()
        self._tokens += answer.tokens
        if i in self._refused:
            return
        if answer.truncated and self._job.refuses_long:
            self._refuse(i, document, TOO_LONG)
            return
        self._pending.append((i, document, answer))
        self._characters += len(document.text)
        now = time.perf_counter()
        many = len(self._pending) >= FLUSH_ROWS or self._characters >= FLUSH_CHARACTERS
        if many or now - self._flushed > FLUSH_SECONDS:
            with stop.later():
                self.flush()
            rate = self._tokens / (now - self._began)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s{self._feed.share()}", refresh=False)

    def _refuse(self, i: int, document: Document, why: str) -> None:
        """The model cannot take this document; no more of its file is answered."""
        self._refused.add(i)
        self._feed.fail(i, ValueError(f"{document.file}, row {document.row}: {why}"))

    def flush(self, last: bool = False) -> None:
        """Put on the disk what was answered; `last`: all files are done."""
        if not self._pending and not last:
            return
        rows = [self._row(document, answer) for _, document, answer in self._pending]
        piece = self._head + self._sink.encode(rows)
        for i, document, answer in self._pending:
            self._advance(i)
            self._state.row = document.row
            add(self._digest, document)
            self._state.answered.update(
                rows=1, tokens=answer.tokens, truncated=bool(answer.truncated), empty=not document.text.strip()
            )
            if self._job.prunes:
                self._state.answered["kept"] += answer.kept
        self._pending.clear()
        self._characters = 0
        if last:
            self._advance(len(self._feed.sources))
        self._state.digest = self._digest.hexdigest()
        if self._spool is not None:
            self._spool.append(piece, self._state.mark())
        else:
            _print(piece.decode())
        self._head = b""
        self._flushed = time.perf_counter()

    def _advance(self, i: int) -> None:
        """The files before the i-th are done."""
        if i == self._state.file:
            return
        for before in range(self._state.file, i):
            self._state.read.update(self._feed.counts.get(before, {}))
            if before in self._feed.failed:
                self._state.failed[str(before)] = self._feed.failed[before]
        self._state.file, self._state.row = i, -1
        self._digest = hashlib.blake2b(digest_size=16)

    def _row(self, document: Document, answer: Any) -> dict[str, Any]:
        # A name on the disk need not be UTF-8, a name in a result must.
        file = os.fsencode(document.file).decode("utf-8", "replace")
        return {"file": file, "row": document.row, "id": document.id, **self._job.row(answer)}


def _total(sources: Sequence[Source], reading: Reading) -> int | None:
    """Documents in all, where that is known without reading them."""
    if reading.whole_file and all(source.format == "txt" for source in sources):
        return len(sources)
    if any(source.format != "parquet" for source in sources):
        return None
    from pyarrow import ArrowException, parquet

    try:
        return sum(parquet.read_metadata(source.name).num_rows for source in sources)
    except (ArrowException, OSError):  # said when its turn comes
        return None


def _print(rows: str) -> None:
    if sys.stdout is None:
        raise ValueError("standard output is closed: add --output")
    try:
        sys.stdout.write(rows)
        sys.stdout.flush()
    except OSError as error:  # as by `| head`; what is left in the buffer must not fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(f"standard output: {error.strerror}") from None


def _say_stopped(spool: Spool | None, overwrite: bool) -> None:
    """A word on what a stopped run leaves behind."""
    if spool is None:
        return
    rows = 0 if spool.mark is None else State.of(spool.mark).answered["rows"]
    done = None if spool.mark is None else f"{rows:,} rows are in {spool.partial}"
    print(f"\n{stopped(done, overwrite)}", file=sys.stderr)
