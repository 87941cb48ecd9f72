"""spconv on the CPU and ours, in turn, on the same sweep and with the same weights."""

from __future__ import annotations

import copy
import importlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import pointcloud
from common_kernels.kernel_map import kernel_map
from pointcloud import PointCloud, SparseConvTensor, SubMConv3d
from pointcloud.models import MinkUNet
from pointcloud.models.minkunet import STRIDE, padded
from pointcloud.segment import N_FEATURES, sweep_voxels
from trisparse.demo import peer
from trisparse.progress import compiling

VOXEL_SIZE = 0.1
CHANNELS = 64
WIDTH = 0.5
ROUNDS = 5
# An operation gets this long, but never fewer than three rounds.
SECONDS = 6.0
# Largest difference of any output, in units of the largest output, beyond which two results do not agree.
TOLERANCE = {
    "map": {"–": 0.0},
    "convolution": {"fp32": 1e-5, "bf16": 2e-2},
    "network": {"fp32": 1e-4, "bf16": 1e-1},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADER = ("operation", "library", "numbers", "threads", "median ms", "speed-up", "agreement")


@dataclass
class Row:
    """One library on one operation."""

    kind: str
    operation: str
    library: str
    dtype: str
    threads: int
    call: Callable[[], Any] | None = None
    seconds: list[float] = field(default_factory=list)
    median: float = 0.0
    speedup: float | None = None
    agreement: str = ""
    agrees: bool = True


@dataclass(frozen=True)
class Comparison:
    """The finished table, what it was measured on, and what is missing from it and why."""

    rows: list[Row]
    caption: str
    skipped: list[str]

    def cells(self) -> list[list[str]]:
        """Its rows as texts, under HEADER."""
        return [
            [
                row.operation,
                row.library,
                row.dtype,
                str(row.threads),
                f"{row.median * 1e3:.1f}",
                "" if row.speedup is None else f"{row.speedup:.1f}×",
                row.agreement,
            ]
            for row in self.rows
        ]


def compare(cloud: PointCloud, whole: bool = True) -> Comparison:
    """Time and compare kernel maps, one convolution and, unless it is not `whole`, a MinkUNet on a sweep."""
    voxels, _ = sweep_voxels(cloud.xyz, VOXEL_SIZE)
    work = padded(voxels, STRIDE)
    n_threads = torch.get_num_threads()
    spconv, skipped = _spconv()
    rows: list[Row] = []
    with torch.inference_mode(), _quiet():
        for build in (_map_rows, _convolution_rows, _network_rows)[: 3 if whole else 2]:
            group = build(work, spconv, n_threads)
            _measure(group)
            rows += group
    for row in rows:
        row.call = None
    measure = "spconv" if spconv is not None else "our own fp32 on one thread, as spconv is not here"
    networks = "Our network went through accelerate (batch norms folded), spconv's is as its users write it. "
    caption = (
        f"{len(work.indices):,} voxels of {VOXEL_SIZE:g} m. Agreement and speed-up are against {measure}. spconv's CPU "
        "kernels are right with one thread only, so it has one. The convolution has its map at hand. "
        f"{networks if whole else ''}Differences are relative to the largest output."
    )
    return Comparison(rows, caption, skipped)


def _spconv() -> tuple[ModuleType | None, list[str]]:
    try:
        return importlib.import_module("spconv.pytorch"), []
    except ImportError as error:
        return None, [f"spconv: not installed ({error}); pip install 'trisparse[bench]'"]


def _threads(n_threads: int) -> list[int]:
    return sorted({1, n_threads})


def _map_rows(work: SparseConvTensor, spconv: ModuleType | None, n_threads: int) -> list[Row]:
    name, coords, shape = "kernel map, 3×3×3", work.indices, list(work.spatial_shape)
    rows = []
    if spconv is not None:
        rows.append(Row("map", name, "spconv", "–", 1, lambda: peer.submanifold_pairs(spconv, coords, shape)))

    def ours() -> Tensor:
        found = kernel_map(coords, shape, 3, batch_size=1)
        _ = found.schedule  # the order in which the convolution reads it belongs to the work
        return found.table

    return rows + [Row("map", name, "trisparse", "–", threads, ours) for threads in _threads(n_threads)]


def _convolution_rows(work: SparseConvTensor, spconv: ModuleType | None, n_threads: int) -> list[Row]:
    name = f"convolution 3×3×3, {CHANNELS} → {CHANNELS}"
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(work.indices), CHANNELS, generator=generator)
    layer = SubMConv3d(CHANNELS, CHANNELS, 3, bias=False).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / (8 * CHANNELS) ** 0.5)
    rows = []
    if spconv is not None:
        theirs = spconv.SubMConv3d(CHANNELS, CHANNELS, 3, bias=False, indice_key="subm").eval()
        theirs.weight.data.copy_(layer.weight)
        held = spconv.SparseConvTensor(features, work.indices, list(work.spatial_shape), 1)
        rows.append(Row("convolution", name, "spconv", "fp32", 1, lambda: theirs(held).features))
    fast = pointcloud.accelerate(layer)
    for threads in _threads(n_threads):
        for dtype, kind in DTYPES.items():
            x = work.replace_feature(features.to(kind))
            rows.append(_row("convolution", name, dtype, threads, _apply(copy.deepcopy(fast).to(kind), x)))
    return rows


def _network_rows(work: SparseConvTensor, spconv: ModuleType | None, n_threads: int) -> list[Row]:
    name = f"MinkUNet {WIDTH:g}, maps rebuilt"
    model = _network(work)
    features, coords, shape = work.features, work.indices, list(work.spatial_shape)
    rows = []
    if spconv is not None:
        theirs = peer.with_spconv_layers(model, spconv)
        new = spconv.SparseConvTensor
        rows.append(Row("network", name, "spconv", "fp32", 1, lambda: theirs(new(features, coords, shape, 1))))
    for threads in _threads(n_threads):
        for dtype, kind in DTYPES.items():
            fast = pointcloud.accelerate(model, dtype=None if dtype == "fp32" else kind)
            rows.append(_row("network", name, dtype, threads, _rebuilding(fast, features, coords, shape)))
    return rows


def _row(kind: str, name: str, dtype: str, threads: int, call: Callable[[], Any]) -> Row:
    return Row(kind, name, "trisparse", dtype, threads, call)


def _apply(layer: nn.Module, x: SparseConvTensor) -> Callable[[], Tensor]:
    return lambda: layer(x).features


def _rebuilding(model: nn.Module, features: Tensor, coords: Tensor, shape: list[int]) -> Callable[[], Tensor]:
    return lambda: model(SparseConvTensor(features, coords, shape, 1))


def _network(work: SparseConvTensor) -> MinkUNet:
    """Random weights, and batch norms that know this sweep: values keep their size through all layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MinkUNet(N_FEATURES, 19, width=WIDTH)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
    with compiling():
        model.train()(work)
    return model.eval()


def _measure(rows: list[Row]) -> None:
    """Time the rows in turn, then judge each by the first: spconv, or our fp32 on one thread."""
    results = [_run(row) for row in rows]
    first = _comparable(rows[0], results[0])
    for row, result in zip(rows[1:], results[1:]):
        _judge(row, _comparable(row, result), first)
    del results, first
    start = time.perf_counter()
    for i in range(ROUNDS):
        if i >= 3 and time.perf_counter() - start > SECONDS:
            break
        for row in rows:
            with one_setting(row.threads):
                assert row.call is not None
                begin = time.perf_counter()
                row.call()
                row.seconds.append(time.perf_counter() - begin)
    for row in rows:
        row.median = statistics.median(row.seconds)
        if row.agrees and row is not rows[0] and rows[0].library == "spconv":
            row.speedup = rows[0].median / row.median


def _run(row: Row) -> Any:
    assert row.call is not None
    with one_setting(row.threads), compiling():
        return row.call()


def _comparable(row: Row, result: Any) -> Tensor:
    if row.kind != "map":
        return result.double()
    return peer.pair_keys(result) if row.library == "spconv" else peer.table_keys(result)


def _judge(row: Row, found: Tensor, first: Tensor) -> None:
    if row.kind == "map":
        row.agrees = torch.equal(found, first)
        row.agreement = f"the same {len(found):,} pairs" if row.agrees else "OTHER PAIRS"
        return
    worst = float((found - first).abs().max() / first.abs().max())
    row.agrees = worst <= TOLERANCE[row.kind][row.dtype]  # false for NaN
    row.agreement = f"largest difference {worst:.0e}"
    if row.kind == "network":
        same = float((found.argmax(1) == first.argmax(1)).double().mean())
        row.agreement += f", {same:.2%} same class"
    if not row.agrees:
        row.agreement = f"DOES NOT AGREE: {row.agreement}"


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns once of how spconv's layers ask whether they are being traced."""
    logger = logging.getLogger("torch.fx._symbolic_trace")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def one_setting(threads: int) -> Iterator[None]:
    """torch, OpenMP and our kernels on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
