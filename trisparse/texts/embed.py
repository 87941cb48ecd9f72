"""Texts in, embeddings out: what the command `trisparse embed` does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trisparse.output.sinks import Column, check_suffix, sink
from trisparse.pruning import parse_prune
from trisparse.texts.reading import Reading
from trisparse.texts.run import Job, Summary, model_fingerprint, run
from trisparse.texts.sources import Source
from trisparse.version import __version__

DTYPES = ("auto", "fp32", "bf16")
OVERFLOWS = ("truncate", "split", "error")
SUFFIXES = (".parquet",)
# What the arguments of models are called on the command line.
ARGUMENTS = {
    "name_or_path must": "--model must",
    "model must": "--model must",
    "max_length must": "--max-length must",
    "download=True": "--download",
}


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
    prune: str | None = None,
    download: bool = False,
) -> Summary:
    """Write a parquet file with a row for each document.

    Columns: file, row (from 0), id where the reading has an id column, embedding (fixed-size list of float32), tokens,
    truncated, and with `prune` kept, the tokens left at the end. Its metadata say with what it was made:
    trisparse.model, .dtype (in which was computed), .version and more.

    Raises:
        ValueError, OSError: see `trisparse.texts.run`.
        ImportError: pyarrow or transformers is not installed.
    """
    check_suffix(output, SUFFIXES)
    check_choice("--overflow", overflow, OVERFLOWS)
    dtype = computed_dtype(dtype)
    prune, policy = (None, None) if prune is None else parse_prune(prune)
    settings = {"model": model, "dtype": dtype, "max-length": max_length, "overflow": overflow, "prune": prune}
    refuse_long = overflow == "error"

    def load() -> Any:
        from nlp.texts.embedder import Embedder

        # A text that is too long is an error of its file alone, hence found out here and not in the model.
        cut = "truncate" if refuse_long else overflow
        options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        options.update(overflow=cut, max_tokens=batch_tokens)
        with in_options(prune):
            return Embedder.load(model, dtype=dtype, prune=policy, download=download, **options)

    def columns(embedder: Any) -> list[Column]:
        return [*place(reading), Column("embedding", f"vector:{embedder.dimensions}"), *counted(prune)]

    def row(answer: Any) -> dict[str, Any]:
        return {"embedding": answer.vector, **counts(answer)}

    def metadata(embedder: Any) -> dict[str, str]:
        limit = {} if embedder.max_length is None else {"max_length": str(embedder.max_length)}
        return {**made_with(model, dtype, overflow, prune), **limit}

    job = Job(
        load,
        lambda embedder: sink(output, columns(embedder), SUFFIXES),
        row,
        {"command": "embed", **settings, **whole(reading), **model_fingerprint(model)},
        metadata,
        output,
        refuse_long,
        prune is not None,
    )
    return run(job, sources, reading, overwrite)


def computed_dtype(dtype: str) -> str:
    """fp32 or bf16: what "auto" means on this machine.

    Raises:
        ValueError: another dtype.
    """
    check_choice("--dtype", dtype, DTYPES)
    if dtype != "auto":
        return dtype
    import torch

    from nlp.accelerate import multiplies_bf16

    return "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32"


def counted(prune: str | None) -> list[Column]:
    """Columns of what is counted in each document."""
    kept = [] if prune is None else [Column("kept", "int")]
    return [Column("tokens", "int"), Column("truncated", "bool"), *kept]


def counts(answer: Any) -> dict[str, Any]:
    """What fills the columns of `counted`."""
    return {"tokens": answer.tokens, "truncated": bool(answer.truncated), "kept": answer.kept}


def made_with(model: str, dtype: str, overflow: str, prune: str | None) -> dict[str, str]:
    """Metadata of a result."""
    pruned = {} if prune is None else {"prune": prune}
    return {"model": model, "dtype": dtype, "version": __version__, "overflow": overflow, **pruned}


@contextmanager
def in_options(prune: str | None) -> Iterator[None]:
    """Errors of a model name the options of the command, not the arguments of a function."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for argument, option in ARGUMENTS.items():
            message = re.sub(rf"(?<![-\w]){argument}", option, message)
        # What a policy says of a network begins with its own name.
        if prune is not None and re.match(r"(prune|keep|layers|theta|p) must|[A-Z]\w+ cannot serve", message):
            message = f"--prune {prune}: {message}"
        raise ValueError(message) from error


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
