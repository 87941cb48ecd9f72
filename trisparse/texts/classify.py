"""Texts in, labels out: what the command `trisparse classify-text` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trisparse.output.sinks import Column
from trisparse.texts.job import Model, TextJob
from trisparse.texts.run import Summary, run
from trisparse.texts.sources import Source

if TYPE_CHECKING:
    from trisparse.commands.classify_text import ClassifyTextOptions


class ClassifyJob(TextJob):
    """A row with its likeliest label, and the best `top` of them, for each document."""

    command = "classify-text"
    suffixes = (".jsonl", ".csv", ".parquet")

    def __init__(self, options: ClassifyTextOptions, sources: Sequence[Source]) -> None:
        super().__init__(options, sources)
        self._top = options.top

    def _load(self, model: str, **options: Any) -> Model:
        from nlp.texts.classifier import TextClassifier

        network: Model = TextClassifier.load(model, **options)
        return network

    def columns(self, model: Any) -> list[Column]:
        return [Column("label", "text"), Column("probability", "float"), Column("top", "scores")]

    def values(self, answer: Any) -> dict[str, Any]:
        first = answer.best[0]
        return {
            "label": first.label,
            "probability": round(first.probability, 6),
            "top": answer.best[: self._top],
        }

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "top": self._top}


def classify(sources: Sequence[Source], options: ClassifyTextOptions) -> Summary:
    """Write a row for each document: JSON lines, csv or parquet; JSON lines on stdout where there is no output.

    Columns: file, row (from 0), id where an id column was asked for, label, probability, top (the best `top` labels
    with their probabilities), tokens, truncated, and with pruning kept, the tokens left at the end.

    Raises:
        ValueError, OSError, ImportError: see `TextJob` and `trisparse.texts.run`.
    """
    return run(ClassifyJob(options, sources), sources)
