"""The video benchmark: decoding, temporal shift, frame skipping, recomputation of changed pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Settings, Trial


@dataclass(frozen=True)
class Shapes:
    """The workload of cases whose input is made up: layers of the shapes that networks have."""

    name: str = "layer shapes"
    summary: str = "no clip"


CASES: dict[str, Callable[[Any, Settings], Iterator[Trial]]] = {}
WORKLOADS: dict[str, Callable[[], Any]] = {"shapes": Shapes}
QUICK: Sequence[str] = ("shapes",)
ONLY: Mapping[str, Sequence[str]] = {}
