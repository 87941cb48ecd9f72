"""Rows of results as JSON lines, csv or parquet: bytes that can be appended, and the file made of them."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from common_models.scores import ClassScore

# Memory of a row group while a parquet file is written, about.
GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class Column:
    """A column of results.

    Attributes:
        kind: text, int, float, bool, scores (`common_models.scores.ClassScore`), or vector:N.
    """

    name: str
    kind: str


class Sink(Protocol):
    """How rows become bytes, and bytes a file.

    Attributes:
        head: bytes before the first row.
    """

    head: bytes

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        """Bytes of some rows, to be appended to those before."""
        ...

    def converter(self, metadata: Mapping[str, str]) -> Callable[[Path, Path], None] | None:
        """What makes the file of the bytes, with what is known of the whole run; None where they are the file."""
        ...


def sink(path: Path | None, columns: Sequence[Column]) -> Sink:
    """The sink for a file with a suffix that `check_suffix` let pass; lines of JSON for None, which are printed."""
    if path is None:
        return JsonLines(columns)
    kinds: dict[str, Callable[[Sequence[Column]], Sink]] = {".jsonl": JsonLines, ".csv": Csv, ".parquet": Parquet}
    return kinds[path.suffix.lower()](columns)


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Raises ValueError for another suffix, ImportError for parquet without pyarrow."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--output must have a suffix of {' '.join(suffixes)}, got {path}")
    if path.suffix.lower() == ".parquet":
        require_pyarrow("writing parquet files")


def require_pyarrow(what: str) -> None:
    """Raises ImportError, which names the extra, where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError(f"{what} needs pyarrow: pip install 'trisparse[nlp]'")


class JsonLines:
    """An object a line."""

    head = b""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        lines = []
        for row in rows:
            line = {column.name: row[column.name] for column in self._columns}
            for column in self._columns:
                if column.kind == "scores":
                    line[column.name] = _named(row[column.name])
            lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        return "".join(lines).encode()

    def converter(self, metadata: Mapping[str, str]) -> None:
        return None


class Csv:
    """A header, then a line for each row; scores are JSON."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self.head = self._written([[column.name for column in columns]])

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        return self._written([[self._cell(column, row[column.name]) for column in self._columns] for row in rows])

    @staticmethod
    def _cell(column: Column, value: Any) -> Any:
        if column.kind == "scores":
            return json.dumps(_named(value), ensure_ascii=False)
        return str(value).lower() if column.kind == "bool" else value

    @staticmethod
    def _written(lines: Sequence[Sequence[Any]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue().encode()

    def converter(self, metadata: Mapping[str, str]) -> None:
        return None


class Parquet:
    """Record batches one after the other; at the end they are read one by one and written as row groups."""

    head = b""

    def __init__(self, columns: Sequence[Column]) -> None:
        import pyarrow as pa

        self._columns = columns
        self.schema = pa.schema([pa.field(column.name, _arrow(column.kind)) for column in columns])

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        import numpy as np
        import pyarrow as pa

        if not rows:
            return b""
        arrays = []
        for column, kind in zip(self._columns, self.schema.types):
            values = [row[column.name] for row in rows]
            if column.kind.startswith("vector"):
                flat = np.stack(values).astype(np.float32, copy=False).reshape(-1)
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.list_size))
            else:
                if column.kind == "scores":
                    values = [_named(value) for value in values]
                arrays.append(pa.array(values, kind))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema).serialize().to_pybytes()

    def converter(self, metadata: Mapping[str, str]) -> Callable[[Path, Path], None]:
        def convert(pieces: Path, path: Path) -> None:
            import pyarrow as pa
            from pyarrow import parquet

            schema = self.schema.with_metadata({f"trisparse.{key}": value for key, value in metadata.items()})
            # Floats of an embedding do not repeat: no dictionary for them.
            few = [column.name for column in self._columns if column.kind == "text"]
            size = os.path.getsize(pieces)
            with (
                parquet.ParquetWriter(path, schema, use_dictionary=few or False) as writer,
                pa.OSFile(os.fspath(pieces)) as file,
            ):
                group: list[Any] = []
                taken = start = 0
                while start < size:
                    batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema)
                    taken, start = taken + file.tell() - start, file.tell()
                    group.append(batch)
                    if taken >= GROUP_BYTES or start >= size:
                        whole = pa.Table.from_batches(group).replace_schema_metadata(schema.metadata)
                        writer.write_table(whole, row_group_size=max(1, len(whole)))
                        group, taken = [], 0

        return convert


def _named(scores: Sequence[ClassScore]) -> list[dict[str, Any]]:
    return [{"label": score.label, "probability": round(score.probability, 6)} for score in scores]


def _arrow(kind: str) -> Any:
    import pyarrow as pa

    if kind.startswith("vector:"):
        return pa.list_(pa.float32(), int(kind.partition(":")[2]))
    scores = pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float32())]))
    return {"text": pa.string(), "int": pa.int64(), "float": pa.float32(), "bool": pa.bool_(), "scores": scores}[kind]
