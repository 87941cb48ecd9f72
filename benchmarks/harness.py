"""Competitors in turn, on the same input, in one process; nothing is timed before its result has been checked."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.data import Unavailable
from benchmarks.machine import Conditions
from benchmarks.results import Row

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
GEMM, COPY = "torch.mm (limit)", "torch.copy_ (limit)"
# A sample shorter than this repeats the call, so that the clock and a waking thread weigh little.
_MIN_SAMPLE_SECONDS = 0.005
# A call this long is no shorter than a sample, however much of it is the first call's own.
_LONG_SECONDS = 0.5
# Threads of another competitor's pool spin for a moment after their last work; let them fall asleep.
_PAUSE_SECONDS = 0.003


@dataclass(frozen=True)
class Settings:
    """What a run varies, the same for all cases.

    Attributes:
        documents: how many of a corpus; 0 for as many as each case takes by itself.
    """

    device: str = "cpu"
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 7
    documents: int = 0


@dataclass(frozen=True)
class Competitor:
    """One way to compute a trial's result.

    Attributes:
        build: prepares weights and caches, returns the call that is timed.
        compare: what of the call's result is held against the reference; None for a limit, which computes nothing.
        tolerance: largest error allowed, relative to the reference's largest value; 0 asks for equality.
        columns: further columns of the row, from the call's first result.
    """

    name: str
    dtype: str
    threads: int
    build: Callable[[], Callable[[], Any]]
    compare: Callable[[Any], Sequence[Tensor]] | None
    tolerance: float = 0.0
    columns: Callable[[Any], Mapping[str, object]] | None = None


@dataclass(frozen=True)
class Trial:
    """One row group of the table: a case on a workload at a shape.

    Attributes:
        reference: parts of the right result.
        products: (rows, Cin, Cout) of each matrix product that the result needs, for the work done and its limit.
        values: feature and weight elements read or written at least once.
        index_bytes: bytes of the map read at least once.
        once: whether the call that is checked is the only one, and its time what is reported: where the result is the
            finding, and takes minutes.
    """

    case: str
    workload: str
    shape: str
    reference: Callable[[], Sequence[Tensor]]
    competitors: Sequence[Competitor]
    products: Sequence[tuple[int, int, int]] = ()
    values: int = 0
    index_bytes: int = 0
    once: bool = False

    @property
    def flops(self) -> float:
        return float(sum(2 * rows * cin * cout for rows, cin, cout in self.products))

    def bytes(self, dtype: str) -> float:
        return float(self.values * DTYPES[dtype].itemsize + self.index_bytes)


@dataclass
class _Entry:
    competitor: Competitor
    row: Row
    call: Callable[[], Any] | None = None
    repeats: int = 1
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    last: Any = None


def run(trial: Trial, settings: Settings, where: Conditions) -> list[Row]:
    """Check and time all competitors of a trial; one row each, of those that failed or are wrong too."""
    reference = trial.reference()
    entries = []
    for competitor in [*trial.competitors, *_limits(trial, settings.device)]:
        row = Row(
            case=trial.case, workload=trial.workload, shape=trial.shape, competitor=competitor.name,
            dtype=competitor.dtype, threads=competitor.threads, **vars(where),
        )  # fmt: skip
        entry = _Entry(competitor, row)
        entries.append(entry)
        _prepare(entry, reference, settings.device, trial.once)
    live = [entry for entry in entries if entry.call is not None]
    gc.collect()
    for _ in range(0 if trial.once else settings.rounds):
        for entry in live:
            _sample(entry, settings.device)
    for entry in live if not trial.once else ():
        _check(entry, entry.last, reference)
        entry.last = None
    for entry in live:
        if entry.row.status == "ok":
            _fill(entry, trial, settings.device)
    _shares(entries, trial)
    return [entry.row for entry in entries]


def disagreement(parts: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Largest difference, relative to the largest value of the reference, over all parts; inf where shapes differ."""
    if len(parts) != len(reference):
        return math.inf
    worst = 0.0
    for part, right in zip(parts, reference, strict=True):
        if part.shape != right.shape:
            return math.inf
        if right.numel() == 0:
            continue
        difference = (part.double() - right.double()).abs().max().item()
        scale = right.double().abs().max().item()
        error = difference / scale if scale else difference
        worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs with torch.set_num_threads(count)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(entry: _Entry, reference: Sequence[Tensor], device: str, once: bool) -> None:
    """Build, run once and check; a competitor that is missing, fails or is wrong is not timed."""
    with torch_threads(entry.competitor.threads):
        try:
            call = entry.competitor.build()
            seconds, cpu, result = _time(call, 1, device)
            _check(entry, result, reference)
            if entry.competitor.columns is not None:
                for name, value in entry.competitor.columns(result).items():
                    setattr(entry.row, name, value)
            if entry.row.status != "ok":
                return
            del result
            if once:
                entry.wall.append(seconds)
                entry.cpu.append(cpu)
            elif seconds < _LONG_SECONDS:
                seconds, _, _ = _time(call, 1, device)  # the first call compiles, too
        except Unavailable as missing:
            entry.row.status = f"skipped: {missing}"
            return
        except Exception as error:  # one competitor's fault must not cost the others' measurements
            entry.row.status = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return
    entry.call = call
    entry.repeats = max(1, math.ceil(_MIN_SAMPLE_SECONDS / max(seconds, 1e-7)))


def _check(entry: _Entry, result: Any, reference: Sequence[Tensor]) -> None:
    competitor, row = entry.competitor, entry.row
    if competitor.compare is None:
        row.status = "ok"
        return
    row.error = max(row.error or 0.0, disagreement(competitor.compare(result), reference))
    row.status = "ok" if row.error <= competitor.tolerance else "wrong"


def _sample(entry: _Entry, device: str) -> None:
    assert entry.call is not None
    with torch_threads(entry.competitor.threads):
        entry.last = None
        time.sleep(_PAUSE_SECONDS)
        wall, cpu, entry.last = _time(entry.call, entry.repeats, device)
    entry.wall.append(wall)
    entry.cpu.append(cpu)


def _time(call: Callable[[], Any], repeats: int, device: str) -> tuple[float, float, Any]:
    """Wall and CPU seconds of one call, averaged over `repeats`, and the last result."""
    if device == "cuda":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    result = None
    for _ in range(repeats):
        result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats, result


def _fill(entry: _Entry, trial: Trial, device: str) -> None:
    row = entry.row
    low, middle, high = np.percentile(entry.wall, (20, 50, 80)).tolist()
    row.wall_ms, row.wall_p20_ms, row.wall_p80_ms = middle * 1e3, low * 1e3, high * 1e3
    row.cpu_ms = float(np.median(entry.cpu)) * 1e3
    row.rounds = len(entry.wall)
    row.gflop = trial.flops / 1e9
    if trial.flops and entry.competitor.name != COPY:
        row.gflop_per_s = trial.flops / middle / 1e9
    if trial.values and entry.competitor.dtype in DTYPES and entry.competitor.name != GEMM:
        row.gb_per_s = trial.bytes(entry.competitor.dtype) / middle / 1e9
    if trial.once:
        return
    assert entry.call is not None
    with torch_threads(entry.competitor.threads):
        row.peak_mib = memory.peak_of(entry.call, device)


def _shares(entries: Sequence[_Entry], trial: Trial) -> None:
    """Share of the limits that were measured in turn with the competitors, at the same dtype and threads."""
    limits = {(e.row.competitor, e.row.dtype, e.row.threads): e.row.wall_ms for e in entries if e.row.status == "ok"}
    for entry in entries:
        row = entry.row
        if entry.competitor.compare is None or row.wall_ms is None:
            continue
        gemm, copy = (limits.get((name, row.dtype, row.threads)) for name in (GEMM, COPY))
        row.gemm_share = gemm / row.wall_ms if gemm else None
        row.copy_share = copy / row.wall_ms if copy else None


def _limits(trial: Trial, device: str) -> Iterator[Competitor]:
    """The library's matrix products and a copy of as many bytes, for each dtype and thread count that competes."""
    kinds = dict.fromkeys((c.dtype, c.threads) for c in trial.competitors)
    for dtype, threads in (kind for kind in kinds if kind[0] in DTYPES):
        if trial.products:
            yield Competitor(GEMM, dtype, threads, lambda d=dtype: _products(trial, d, device), None)  # type: ignore[misc]
        if trial.values:
            yield Competitor(COPY, dtype, threads, lambda d=dtype: _copy(trial, d, device), None)  # type: ignore[misc]


def _products(trial: Trial, dtype: str, device: str) -> Callable[[], None]:
    """Every product of the trial, without gathering or adding. They share memory: the limit is to be generous."""
    kind = DTYPES[dtype]
    left = torch.randn(max(rows * cin for rows, cin, _ in trial.products), device=device).to(kind)
    right = torch.randn(max(cin * cout for _, cin, cout in trial.products), device=device).to(kind)
    out = torch.empty(max(rows * cout for rows, _, cout in trial.products), dtype=kind, device=device)
    operands = [
        (left[: rows * cin].view(rows, cin), right[: cin * cout].view(cin, cout), out[: rows * cout].view(rows, cout))
        for rows, cin, cout in trial.products
    ]

    def call() -> None:
        for a, b, c in operands:
            torch.mm(a, b, out=c)

    return call


def _copy(trial: Trial, dtype: str, device: str) -> Callable[[], Tensor]:
    source = torch.zeros(int(trial.bytes(dtype)) // 8 + 1, device=device)  # fp32, read and written: 8 bytes each
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
