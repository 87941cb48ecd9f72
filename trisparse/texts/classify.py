"""Texts in, labels out: what the command `trisparse classify-text` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trisparse.output.sinks import Column, JsonLines, check_suffix, sink
from trisparse.pruning import parse_prune
from trisparse.texts.embed import (
    OVERFLOWS,
    check_choice,
    computed_dtype,
    counted,
    counts,
    in_options,
    made_with,
    place,
    whole,
)
from trisparse.texts.reading import Reading
from trisparse.texts.run import Job, Summary, model_fingerprint, run
from trisparse.texts.sources import Source

SUFFIXES = (".jsonl", ".csv", ".parquet")


def classify(
    sources: Sequence[Source],
    reading: Reading,
    output: Path | None,
    model: str,
    top: int = 5,
    dtype: str = "auto",
    max_length: int | None = None,
    overflow: str = "truncate",
    batch_tokens: int = 8192,
    overwrite: bool = False,
    prune: str | None = None,
    download: bool = False,
) -> Summary:
    """Write a row for each document: JSON lines, csv or parquet; JSON lines on stdout where there is no output.

    Columns: file, row (from 0), id where the reading has an id column, label, probability, top (the best `top` labels
    with their probabilities), tokens, truncated, and with `prune` kept, the tokens left at the end.

    Raises:
        ValueError, OSError: see `trisparse.texts.run`.
        ImportError: pyarrow or transformers is not installed.
    """
    if output is not None:
        check_suffix(output, SUFFIXES)
    check_choice("--overflow", overflow, OVERFLOWS)
    dtype = computed_dtype(dtype)
    prune, policy = (None, None) if prune is None else parse_prune(prune)
    settings = {
        "model": model,
        "dtype": dtype,
        "max-length": max_length,
        "overflow": overflow,
        "prune": prune,
        "top": top,
    }
    refuse_long = overflow == "error"
    columns = [
        *place(reading),
        Column("label", "text"),
        Column("probability", "float"),
        Column("top", "scores"),
        *counted(prune),
    ]

    def load() -> Any:
        from nlp.texts.classifier import TextClassifier

        cut = "truncate" if refuse_long else overflow
        options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        options.update(overflow=cut, max_tokens=batch_tokens)
        with in_options(prune):
            return TextClassifier.load(model, dtype=dtype, prune=policy, download=download, **options)

    def row(answer: Any) -> dict[str, Any]:
        label, probability = answer.best[0]
        return {
            "label": label,
            "probability": round(probability, 6),
            "top": answer.best[:top],
            **counts(answer),
        }

    job = Job(
        load,
        lambda _: JsonLines(columns) if output is None else sink(output, columns, SUFFIXES),
        row,
        {"command": "classify-text", **settings, **whole(reading), **model_fingerprint(model)},
        lambda _: made_with(model, dtype, overflow, prune),
        output,
        refuse_long,
        prune is not None,
    )
    return run(job, sources, reading, overwrite)
