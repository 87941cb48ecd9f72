"""The language benchmark: embedding real texts of uneven length, attention alone, what pruning costs, decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.harness import Settings, Trial
from benchmarks.nlp import accuracy, attention, generation, texts, throughput
from benchmarks.nlp.report import markdown
from benchmarks.nlp.texts import LENGTHS

__all__ = ["CASES", "ONLY", "QUICK", "WORKLOADS", "markdown"]

CASES: dict[str, Callable[[Any, Settings], Iterator[Trial]]] = {
    "throughput": throughput.trials,
    "attention": attention.trials,
    "accuracy": accuracy.trials,
    "generation": generation.trials,
}
WORKLOADS: dict[str, Callable[[], texts.Corpus]] = texts.CORPORA
# Always there, as it comes with Python.
QUICK: Sequence[str] = ("topics",)
ONLY: Mapping[str, Sequence[str]] = {
    "throughput": ("20ng", "r8", "movie", "sst2", "topics", "32x128", "32x512"),
    "attention": ("20ng", "movie", "topics", LENGTHS),
    "accuracy": ("20ng", "r8", "movie", "sst2"),
    "generation": ("topics",),
}
