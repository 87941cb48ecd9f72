"""Documents out of tables: csv, tsv, and parquet."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from trisparse.texts.reading import LONGEST_BYTES, Document, Log, Reading, bad, decode, invalid, no_column, null
from trisparse.texts.sources import Source

# Rows of a parquet file that are in memory at a time.
PARQUET_ROWS = 1024
DELIMITERS = (",", "\t", ";", "|")
# Number, byte offset and bytes of a line.
Line = tuple[int, int, bytes]


def csv_cells(lines: Iterable[Line], source: Source, reading: Reading, log: Log) -> Iterator[Document]:
    # The module's own limit is that of all its users: never lowered.
    csv.field_size_limit(max(LONGEST_BYTES, csv.field_size_limit()))
    decoded = _decoded(lines, source, reading, log)
    first = next((line for line in decoded if line.strip()), None)
    if first is None:
        return
    options: dict[str, Any] = {"strict": True, "quoting": csv.QUOTE_MINIMAL if reading.quotes else csv.QUOTE_NONE}
    delimiter, names = _header(first, source, reading, options)
    text_at, id_at = _columns(names, source, reading)
    header_left = reading.header
    records = csv.reader(itertools.chain([first], decoded), delimiter=delimiter, **options)
    row = -1
    while True:
        where = f"{source.name}, line {records.line_num + 1}"
        begun = records.line_num
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):  # all the rest of the file, too much to leave out with a word
                raise ValueError(
                    f"{where}: a quotation mark is opened and never closed{_quote_hint(reading)}"
                ) from None
            row += 1
            bad(f"{where}: {_explained(error, reading)}", reading, log, records.line_num - begun)
            continue
        if header_left:
            header_left = False
            continue
        if not cells:
            continue
        row += 1
        if len(cells) != len(names):
            bad(f"{where}: {len(names)} cells expected, got {len(cells)}", reading, log)
            continue
        text: str | None = cells[text_at]
        name = None if id_at is None else cells[id_at]
        if not _is_valid(cells[text_at] + (name or "")):
            text = invalid(_replaced(cells[text_at]), reading, log)
            name = None if name is None else _replaced(name)
        if text is not None:
            yield Document(source.name, row, text, name)


def _is_valid(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _replaced(cell: str) -> str:
    return cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _explained(error: csv.Error, reading: Reading) -> str:
    if "new-line character" in str(error):
        return "a carriage return that no line feed follows; lines must end in \\n or \\r\\n"
    return f"{error}{_quote_hint(reading)}"


def _quote_hint(reading: Reading) -> str:
    return " (--no-quotes takes quotation marks as ordinary characters)" if reading.quotes else ""


def _decoded(lines: Iterable[Line], source: Source, reading: Reading, log: Log) -> Iterator[str]:
    """Decoded lines; where invalid bytes are no error they stay as lone surrogates, for only whole records can go."""
    for number, offset, line in lines:
        if reading.invalid == "error":
            text = decode(line, offset, f"{source.name}, line {number + 1}", reading, log)
            if text is not None:
                yield text
        else:
            yield line.decode("utf-8", "surrogateescape")


def _header(first: str, source: Source, reading: Reading, options: dict[str, Any]) -> tuple[str, list[str]]:
    """Delimiter and cells of the first line: that which holds the wanted column, else that with the most cells."""
    found = []
    wrong = ""
    for delimiter in ("\t",) if source.format == "tsv" else DELIMITERS:
        try:
            cells = next(csv.reader([first], delimiter=delimiter, **options), [])
        except csv.Error as error:
            wrong = _explained(error, reading)
            continue
        names = [cell.strip() for cell in cells]
        found.append((reading.header and reading.column in names, len(names), delimiter, names))
    if not found:
        raise ValueError(f"{source.name}, line 1: {wrong}")
    best = max(found, key=lambda entry: entry[:2])
    return best[2], best[3]


def _columns(names: list[str], source: Source, reading: Reading) -> tuple[int, int | None]:
    """Where text and id stand."""
    wanted = {"--column": reading.column}
    if reading.id_column is not None:
        wanted["--id-column"] = reading.id_column
    if not reading.header:
        for option, name in wanted.items():
            if not name.isdecimal() or int(name) >= len(names):
                raise ValueError(
                    f"{source.name}: with --no-header {option} must be a number from 0 to {len(names) - 1}, "
                    f"got {name!r}"
                )
        return int(reading.column), None if reading.id_column is None else int(reading.id_column)
    for option, name in wanted.items():
        if names.count(name) > 1:
            raise ValueError(f"{source.name}: {names.count(name)} columns are called {name!r}")
        if name not in names:
            raise ValueError(
                no_column(source.name, name, names, option) + "; if the file has no header, add --no-header"
            )
    return names.index(reading.column), None if reading.id_column is None else names.index(reading.id_column)


def parquet(source: Source, reading: Reading, log: Log) -> Iterator[Document]:
    import pyarrow as pa
    from pyarrow import parquet as pq

    try:
        # Buffered, a row group of any size is read page by page.
        with pq.ParquetFile(source.name, buffer_size=1 << 20, pre_buffer=False) as file:
            wanted = {"--column": reading.column}
            if reading.id_column is not None:
                wanted["--id-column"] = reading.id_column
            for option, name in wanted.items():
                if name not in file.schema_arrow.names:
                    raise ValueError(no_column(source.name, name, file.schema_arrow.names, option))
                if file.schema_arrow.names.count(name) > 1:
                    raise ValueError(
                        f"{source.name}: {file.schema_arrow.names.count(name)} columns are called {name!r}"
                    )
            kind = file.schema_arrow.field(reading.column).type
            if not _holds_text(kind):
                raise ValueError(f"{source.name}: column {reading.column!r} holds {kind}, text expected")
            if reading.id_column is not None and pa.types.is_nested(file.schema_arrow.field(reading.id_column).type):
                raise ValueError(f"{source.name}: column {reading.id_column!r} holds lists, text or numbers expected")
            row = 0
            columns = list(dict.fromkeys(wanted.values()))
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns, use_threads=False):
                texts = _as_bytes(batch.column(reading.column)).to_pylist()
                names = None if reading.id_column is None else _names(batch.column(reading.id_column))
                for i, data in enumerate(texts):
                    where = f"{source.name}, row {row + i}"
                    text = null(where, reading, log) if data is None else _cell(data, where, reading, log)
                    if text is None:
                        continue
                    called = None if names is None else names[i]
                    if isinstance(called, bytes):
                        called = _cell(called, where, reading, log)
                        if called is None:
                            continue
                    yield Document(source.name, row + i, text, None if called is None else str(called))
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{source.name}: not a parquet file that can be read ({error})") from None


def _cell(data: bytes, where: str, reading: Reading, log: Log) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if reading.invalid == "error":
            raise ValueError(
                f"{where}: not UTF-8 at byte {error.start} of the text (0x{data[error.start]:02x}); "
                "--invalid replace or --invalid skip accepts it"
            ) from None
        return invalid(data.decode("utf-8", "replace"), reading, log)


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    known = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    # Views are younger than the oldest pyarrow that will do.
    return any(getattr(types, f"is_{name}")(kind) for name in known if hasattr(types, f"is_{name}"))


def _names(column: Any) -> list[Any]:
    """Names as bytes where they are text, else as Python's numbers and the like."""
    import pyarrow as pa

    if _holds_text(column.type):
        column = _as_bytes(column)
    elif pa.types.is_temporal(column.type):  # finer than Python's times
        column = column.cast(pa.string())
    return list(column.to_pylist())


def _as_bytes(column: Any) -> Any:
    """The column as binary: whether it is UTF-8 is for us to say, its writer may have been careless."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    small = (pa.string(), pa.binary(), pa.null())
    return column.cast(pa.binary() if column.type in small else pa.large_binary())
