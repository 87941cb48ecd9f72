"""The language benchmark: embedding real texts of uneven length, attention alone, what pruning costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.harness import Settings, Trial
from benchmarks.nlp import accuracy, attention, texts, throughput
from benchmarks.nlp.report import markdown

__all__ = ["CASES", "ONLY", "QUICK", "WORKLOADS", "markdown"]

CASES: dict[str, Callable[[Any, Settings], Iterator[Trial]]] = {
    "throughput": throughput.trials,
    "attention": attention.trials,
    "accuracy": accuracy.trials,
}
WORKLOADS: dict[str, Callable[[], texts.Corpus]] = texts.CORPORA
# Always there, as it comes with Python.
QUICK: Sequence[str] = ("topics",)
ONLY: Mapping[str, Sequence[str]] = {
    "attention": ("20ng", "r8", "movie", "topics"),
    "accuracy": ("20ng", "r8", "movie", "sst2"),
}
