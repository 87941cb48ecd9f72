"""What a document is, how it is to be read, and what is done where it cannot be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO

from common_models.names import did_you_mean

INVALID = ("error", "replace", "skip")
NULLS = ("error", "skip", "empty")
# A reader's memory is bounded by its longest document, so that has a bound.
LONGEST_BYTES = 1 << 24


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        file: name of its file, as the user wrote it.
        row: from 0: the line of a txt or jsonl file, the record of a csv file after its header, the row of a parquet
            file.
        id: what the file calls it, where that was asked for.
    """

    file: str
    row: int
    text: str
    id: str | None = None


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        column: of the text; in a table without a header its number, from 0.
        id_column: of a name for each document.
        whole_file: a txt file is one document, not one a line.
        invalid: what is done with text that is not UTF-8: error, replace (U+FFFD in its place), or skip the document.
        nulls: what is done with a text that is null: error, skip, or empty (the empty text).
        skip_bad: leave out lines that do not parse or lack the column, instead of an error.
        quotes: quotation marks hold the cells of csv and tsv together; else they are ordinary characters.
        header: the first line of csv and tsv names the columns; else they have numbers.
    """

    column: str = "text"
    id_column: str | None = None
    whole_file: bool = False
    invalid: str = "error"
    nulls: str = "error"
    skip_bad: bool = False
    quotes: bool = True
    header: bool = True

    def __post_init__(self) -> None:
        if self.invalid not in INVALID:
            raise ValueError(f"--invalid must be one of {', '.join(INVALID)}, got {self.invalid!r}")
        if self.nulls not in NULLS:
            raise ValueError(f"--nulls must be one of {', '.join(NULLS)}, got {self.nulls!r}")


@dataclass
class Log:
    """What a reader came across: counts by what they count, and the file that is open."""

    counts: Counter[str] = field(default_factory=Counter)
    handle: IO[bytes] | None = None

    @property
    def position(self) -> int:
        """Bytes of the open file that were read."""
        if self.handle is None or self.handle.closed:
            return 0
        try:
            return self.handle.tell()
        except OSError:  # a pipe
            return 0


def decode(data: bytes, offset: int, where: str, reading: Reading, log: Log) -> str | None:
    """Text of bytes that begin at `offset` of their file; None for a document to skip."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if reading.invalid == "error":
            raise ValueError(
                f"{where}: not UTF-8 at byte {offset + error.start} of the file (0x{data[error.start]:02x}); "
                "--invalid replace or --invalid skip accepts it"
            ) from None
        return invalid(data.decode("utf-8", "replace"), reading, log)


def invalid(replaced: str, reading: Reading, log: Log) -> str | None:
    """The replaced text, counted; None where the document is to be skipped."""
    log.counts["with invalid UTF-8 replaced" if reading.invalid == "replace" else "skipped for invalid UTF-8"] += 1
    return replaced if reading.invalid == "replace" else None


def encodable(text: str, where: str, reading: Reading, log: Log) -> str | None:
    """The text, unless it holds half a surrogate pair, which JSON can write but no text can hold."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        if reading.invalid == "error":
            raise ValueError(
                f"{where}: half a surrogate pair (\\u{ord(text[error.start]):04x}) in the text; "
                "--invalid replace or --invalid skip accepts it"
            ) from None
        return invalid(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), reading, log)


def null(where: str, reading: Reading, log: Log) -> str | None:
    """What a null is taken for: "", or None for a document to skip."""
    if reading.nulls == "error":
        raise ValueError(f"{where}: null where a text was expected; --nulls skip or --nulls empty accepts it")
    log.counts["skipped as null" if reading.nulls == "skip" else "null taken as empty"] += 1
    return None if reading.nulls == "skip" else ""


def bad(message: str, reading: Reading, log: Log, lines: int = 1) -> None:
    """Raises ValueError for lines that cannot be used, or counts them."""
    if not reading.skip_bad:
        raise ValueError(f"{message}; --skip-bad leaves out such lines")
    log.counts["skipped as bad lines"] += lines


def no_column(name: str, wanted: str, found: Iterable[str], option: str = "--column") -> str:
    """What to say of a column that is not among those found."""
    names = list(dict.fromkeys(found))
    shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    close = did_you_mean(wanted, names)
    hint = f"{close} Name it with {option}" if close else f"; name one with {option}"
    return f"{name}: no column {wanted!r}, it has {shown or 'no columns'}{hint}"
