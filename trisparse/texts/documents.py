"""Documents out of files of text, one after the other: lines, cells of a table, fields of JSON, columns of parquet."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from trisparse.texts import tables
from trisparse.texts.reading import LONGEST_BYTES, Document, Log, Reading, bad, decode, encodable, no_column, null
from trisparse.texts.sources import STDIN, Source

__all__ = ["Document", "Log", "Reading", "read"]


def read(source: Source, reading: Reading, log: Log | None = None) -> Iterator[Document]:
    """The documents of one file, in order. Memory is bounded by the longest document, not by the file.

    Raises:
        ValueError: what cannot be read as the source's format, with file and line; a column that does not exist.
        OSError: a file that cannot be read at all.
    """
    log = Log() if log is None else log
    if source.format == "parquet":
        yield from tables.parquet(source, reading, log)
        return
    with _opened(source, log) as handle:
        if source.format == "txt":
            yield from (_whole if reading.whole_file else _txt)(handle, source, reading, log)
        elif source.format == "jsonl":
            yield from _jsonl(handle, source, reading, log)
        else:
            yield from tables.csv_cells(_lines(handle, source, reading, log), source, reading, log)


@contextmanager
def _opened(source: Source, log: Log) -> Iterator[IO[bytes]]:
    if source.name == STDIN:
        if sys.stdin is None:
            raise ValueError(f"{STDIN}: standard input is closed")
        yield sys.stdin.buffer
        return
    with open(source.name, "rb") as file:
        log.handle = file
        if not source.gzipped:
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield unpacked  # type: ignore[misc]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{source.name}: an incomplete or damaged gzip file ({error})") from None


def _lines(handle: IO[bytes], source: Source, reading: Reading, log: Log) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and bytes of each line, its end included, a byte-order mark not."""
    offset = 0
    for number in itertools.count():
        line = handle.readline(LONGEST_BYTES + 1)
        if not line:
            return
        start, offset = offset, offset + len(line)
        if number == 0:
            line, start = _without_mark(line, source)
            if not line:  # nothing but the mark
                return
        if len(line) <= LONGEST_BYTES:
            yield number, start, line
            continue
        bad(f"{source.name}, line {number + 1}: longer than {LONGEST_BYTES >> 20} MiB", reading, log)
        while not line.endswith(b"\n") and line:
            line = handle.readline(LONGEST_BYTES)
            offset += len(line)


def _without_mark(data: bytes, source: Source) -> tuple[bytes, int]:
    """The first line without UTF-8's byte-order mark, and how long that was."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{source.name}: UTF-8 was expected, got UTF-16 (by its byte-order mark)")
    begin = data[:100]
    if len(begin) >= 4 and any(begin) and not (any(begin[::2]) and any(begin[1::2])):  # valid UTF-8, yet
        raise ValueError(f"{source.name}: UTF-8 was expected, got UTF-16 (every other byte is 0)")
    mark = b"\xef\xbb\xbf"
    return (data[len(mark) :], len(mark)) if data.startswith(mark) else (data, 0)


def _txt(handle: IO[bytes], source: Source, reading: Reading, log: Log) -> Iterator[Document]:
    for number, offset, line in _lines(handle, source, reading, log):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        text = decode(line, offset, f"{source.name}, line {number + 1}", reading, log)
        if text is not None:
            yield Document(source.name, number, text)


def _whole(handle: IO[bytes], source: Source, reading: Reading, log: Log) -> Iterator[Document]:
    data = handle.read(LONGEST_BYTES + 1)
    if len(data) > LONGEST_BYTES:
        raise ValueError(f"{source.name}: longer than {LONGEST_BYTES >> 20} MiB, too long for one document")
    data, offset = _without_mark(data, source)
    line = 1 + data[: _first_invalid(data)].count(b"\n")
    text = decode(data, offset, f"{source.name}, line {line}", reading, log)
    if text is not None:
        yield Document(source.name, 0, text)


def _first_invalid(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _jsonl(handle: IO[bytes], source: Source, reading: Reading, log: Log) -> Iterator[Document]:
    for number, offset, line in _lines(handle, source, reading, log):
        if not line.strip():
            continue
        where = f"{source.name}, line {number + 1}"
        data = decode(line, offset, where, reading, log)
        if data is None:
            continue
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            bad(f"{where}: not JSON ({error})", reading, log)
            continue
        if not isinstance(value, dict):
            bad(f"{where}: an object expected, got {type(value).__name__}", reading, log)
            continue
        missing = next((n for n in (reading.column, reading.id_column) if n is not None and n not in value), None)
        if missing is not None:
            option = "--column" if missing == reading.column else "--id-column"
            bad(no_column(where, missing, value, option), reading, log)
            continue
        text, name = value[reading.column], value.get(reading.id_column) if reading.id_column is not None else None
        if text is not None and not isinstance(text, str):
            bad(f"{where}: {reading.column!r} holds {type(text).__name__}, text expected", reading, log)
            continue
        if isinstance(name, (dict, list)):
            bad(f"{where}: {reading.id_column!r} holds {type(name).__name__}, text or number expected", reading, log)
            continue
        if name is not None and not isinstance(name, str):
            name = json.dumps(name)
        text = null(where, reading, log) if text is None else encodable(text, where, reading, log)
        if text is not None and name is not None:
            name = encodable(name, where, reading, log)
            if name is None:
                continue
        if text is not None:
            yield Document(source.name, number, text, name)
