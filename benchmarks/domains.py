"""The domains of the benchmark: which cases run on which workloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import results
from benchmarks.harness import Settings, Trial


@dataclass(frozen=True)
class Domain:
    """What can be measured.

    Attributes:
        cases: each turns a workload and the settings into trials.
        workloads: loaders; what they return has a `name` and a `summary`, and they raise Unavailable.
        quick: workloads of a quick run.
        only: the workloads of those cases that do not run on all.
        rounds: samples of each competitor, by default.
        quick_documents: documents of each corpus in a quick run; 0 where workloads are no corpora.
        markdown: the tables for a document.
    """

    cases: Mapping[str, Callable[[Any, Settings], Iterator[Trial]]]
    workloads: Mapping[str, Callable[[], Any]]
    quick: Sequence[str]
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    quick_documents: int = 0
    rounds: int = 7
    markdown: Callable[[Sequence[results.Row]], str] = results.markdown

    def runs(self, case: str, workload: str) -> bool:
        """Whether the case measures anything on the workload."""
        return workload in self.only.get(case, self.workloads)


def pointcloud() -> Domain:
    """Sparse convolution on clouds."""
    from benchmarks.pointcloud import CASES, workloads

    return Domain(CASES, workloads.WORKLOADS, ("nuscenes",), {"detectors": ("nuscenes",), "stream": ("simulated",)})


def video() -> Domain:
    """Decoding, temporal shift, skipping and recomputation on clips."""
    from benchmarks import video as domain

    return Domain(domain.CASES, domain.WORKLOADS, domain.QUICK, domain.ONLY)


def nlp() -> Domain:
    """Embedding, attention and the accuracy of pruned encoders on labelled texts."""
    from benchmarks import nlp as domain

    return Domain(domain.CASES, domain.WORKLOADS, domain.QUICK, domain.ONLY, 24, rounds=2, markdown=domain.markdown)


DOMAINS: dict[str, Callable[[], Domain]] = {"pointcloud": pointcloud, "video": video, "nlp": nlp}
