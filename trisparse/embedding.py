"""Texts in, embeddings out: what the command `trisparse embed` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trisparse.reading import Reading
from trisparse.sinks import Column, check_suffix, sink
from trisparse.sources import Source
from trisparse.texts import Job, Summary, model_fingerprint, run
from trisparse.version import __version__

DTYPES = ("auto", "fp32", "bf16")
OVERFLOWS = ("truncate", "split", "error")
SUFFIXES = (".parquet",)


def embed(
    sources: Sequence[Source],
    reading: Reading,
    output: Path,
    model: str,
    dtype: str = "auto",
    max_length: int | None = None,
    overflow: str = "truncate",
    batch_tokens: int = 8192,
    overwrite: bool = False,
) -> Summary:
    """Write a parquet file with a row for each document.

    Columns: file, row (from 0), id where the reading has an id column, embedding (fixed-size list of float32), tokens,
    truncated. Its metadata say with what it was made: trisparse.model, .dtype, .version and more.

    Raises:
        ValueError, OSError: see `trisparse.texts.run`.
        ImportError: pyarrow or transformers is not installed.
    """
    check_suffix(output, SUFFIXES)
    check_choice("--dtype", dtype, DTYPES)
    check_choice("--overflow", overflow, OVERFLOWS)
    settings = {"model": model, "dtype": dtype, "max-length": max_length, "overflow": overflow}
    refuse_long = overflow == "error"

    def load() -> Any:
        from nlp.embedder import Embedder

        # A text that is too long is an error of its file alone, hence found out here and not in the model.
        cut = "truncate" if refuse_long else overflow
        options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        return Embedder.load(model, dtype=dtype, overflow=cut, max_tokens=batch_tokens, **options)

    def columns(embedder: Any) -> list[Column]:
        vector = Column("embedding", f"vector:{embedder.dimensions}")
        return [*place(reading), vector, Column("tokens", "int"), Column("truncated", "bool")]

    def row(answer: Any) -> dict[str, Any]:
        return {"embedding": answer.vector, "tokens": answer.tokens, "truncated": bool(answer.truncated)}

    def metadata(embedder: Any) -> dict[str, str]:
        limit = {} if embedder.max_length is None else {"max_length": str(embedder.max_length)}
        return {"model": model, "dtype": dtype, "version": __version__, "overflow": overflow, **limit}

    job = Job(
        load,
        lambda embedder: sink(output, columns(embedder), SUFFIXES),
        row,
        {"command": "embed", **settings, **whole(reading), **model_fingerprint(model)},
        metadata,
        output,
        refuse_long,
    )
    return run(job, sources, reading, overwrite)


def place(reading: Reading) -> list[Column]:
    """Columns that say which document a row is of."""
    name = [] if reading.id_column is None else [Column("id", "text")]
    return [Column("file", "text"), Column("row", "int"), *name]


def whole(reading: Reading) -> dict[str, Any]:
    """Settings of a reading that rows depend on beside the texts themselves."""
    return {"column": reading.column, "id-column": reading.id_column, "whole-file": reading.whole_file}


def check_choice(option: str, given: str, known: Sequence[str]) -> None:
    """Raises ValueError for a choice that there is not."""
    if given not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {given!r}")
