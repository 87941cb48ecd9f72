"""Texts in, embeddings out: what the command `trisparse embed` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trisparse.output.sinks import Column
from trisparse.texts.job import Model, TextJob
from trisparse.texts.run import Summary, run
from trisparse.texts.sources import Source

if TYPE_CHECKING:
    from trisparse.commands.embed import EmbedOptions


class EmbedJob(TextJob):
    """A row with its embedding (a fixed-size list of float32) for each document."""

    command = "embed"
    suffixes = (".parquet",)

    def _load(self, model: str, **options: Any) -> Model:
        from nlp.texts.embedder import Embedder

        network: Model = Embedder.load(model, **options)
        return network

    def columns(self, model: Any) -> list[Column]:
        return [Column("embedding", f"vector:{model.dimensions}")]

    def values(self, answer: Any) -> dict[str, Any]:
        return {"embedding": answer.vector}

    def metadata(self, model: Any) -> dict[str, str]:
        limit = {} if model.max_length is None else {"max_length": str(model.max_length)}
        return {**super().metadata(model), **limit}


def embed(sources: Sequence[Source], options: EmbedOptions) -> Summary:
    """Write a parquet file with a row for each document.

    Columns: file, row (from 0), id where an id column was asked for, embedding, tokens, truncated, and with pruning
    kept, the tokens left at the end. Its metadata say with what it was made: trisparse.model, .dtype (in which was
    computed), .version and more.

    Raises:
        ValueError, OSError, ImportError: see `TextJob` and `trisparse.texts.run`.
    """
    return run(EmbedJob(options, sources), sources)
