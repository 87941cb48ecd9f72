"""Stand-ins for language models, and a program that runs the commands with them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common_models.errors import ArgumentError

ROOT = Path(__file__).resolve().parents[2]
SIZE = 5


class Score(NamedTuple):
    """As common_models.scores.ClassScore, without torch."""

    label: str
    probability: float


@dataclass
class Answer:
    """What both commands read of an answer."""

    vector: np.ndarray
    best: list[Score]
    tokens: int
    truncated: int
    kept: int


def answer(text: str, limit: int) -> Answer:
    """Numbers that depend on the text alone."""
    numbers = np.frombuffer(hashlib.sha256(text.encode()).digest()[: 4 * SIZE], np.uint32) / 2**32
    words = len(text.split())
    scores = [Score(*pair) for pair in zip("abcde", (numbers / numbers.sum()).tolist())]
    scores.sort(key=lambda score: -score.probability)
    return Answer(numbers.astype(np.float32), scores, min(words, limit - 2) + 2, max(0, words - limit + 2), 2)


class Stub:
    """Both an Embedder and a TextClassifier: answers after `seconds` each, reads `ahead` texts, may stop.

    Attributes:
        loaded: arguments of each `load`.
        seen: texts of all runs; None keeps none.
    """

    dimensions = SIZE
    seconds = 0.0
    ahead = 1
    stop_after: int | None = None
    error: BaseException = KeyboardInterrupt()
    loaded: list[dict[str, Any]] = []  # noqa: RUF012
    seen: list[str] | None = []  # noqa: RUF012

    def __init__(self, max_length: int = 256) -> None:
        self.max_length = max_length

    @classmethod
    def load(cls, name: str, **options: Any) -> Stub:
        if name == "unknown":
            raise ArgumentError(
                "name_or_path",
                "must be a folder, a file or one of stub, got 'unknown'",
                ("download=True", "fetches one"),
            )
        cls.loaded.append({"name": name, **options})
        return cls(options.get("max_length") or 256)

    def stream(self, texts: Iterable[str]) -> Iterator[Answer]:
        cls = type(self)
        waiting: list[str] = []
        for text in texts:
            waiting.append(text)
            if len(waiting) >= self.ahead:
                yield self._answer(waiting.pop(0))
        while waiting:
            yield self._answer(waiting.pop(0))
        if cls.stop_after is not None and cls.stop_after <= 0:
            raise self.error

    def _answer(self, text: str) -> Answer:
        cls = type(self)
        if cls.stop_after is not None:
            if cls.stop_after <= 0:
                raise self.error
            cls.stop_after -= 1
        if text == "no meaning":
            raise ValueError("texts[3] has no token")
        if self.seconds:
            time.sleep(self.seconds)
        if cls.seen is not None:
            cls.seen.append(text)
        return answer(text, self.max_length)


PROGRAM = r"""
import re, sys, types
from tests.trisparse.stand_ins import Stub
from trisparse.texts import run as texts
Stub.seen = None
Stub.seconds, texts.FLUSH_SECONDS = {seconds}, {flush}
for module, name in (("nlp.texts.embedder", "Embedder"), ("nlp.texts.classifier", "TextClassifier")):
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], name, Stub)
from trisparse.cli import app
try:
    app(prog_name="trisparse", args={arguments})
finally:
    # Not what getrusage says, which begins with the peak of the parent process.
    peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())
    print("peak", int(peak[1]) // 1024, file=sys.stderr)
"""


def start(*arguments: object, seconds: float = 0.0, flush: float = 2.0, **options: Any) -> subprocess.Popen[str]:
    """A process of the command with the stub; its last line on stderr is its peak of memory in MiB."""
    # A stated dtype: to find the faster one would load all of torch.
    named = [*map(str, arguments), "--dtype", "fp32"]
    program = PROGRAM.format(seconds=seconds, flush=flush, arguments=named)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
