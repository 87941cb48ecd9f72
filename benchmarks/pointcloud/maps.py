"""Building the map of one layer, from coordinates to what the convolution reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.competitors import OURS, TORCH
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.pointcloud import peers
from benchmarks.pointcloud.entrants import SPCONVS, entrants
from benchmarks.pointcloud.workloads import Workload


@dataclass(frozen=True)
class _Layer:
    title: str
    kernel: int
    stride: int
    padding: int
    submanifold: bool
    shuffled: bool = False


_LAYERS = (
    _Layer("submanifold k3", 3, 1, 0, True),
    _Layer("submanifold k3, shuffled rows", 3, 1, 0, True, shuffled=True),
    _Layer("strided k2 s2", 2, 2, 0, False),
    _Layer("strided k3 s2 p1", 3, 2, 1, False),
)


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """One trial per kind of layer. The maps must have exactly the same pairs."""
    settings = replace(settings, dtypes=("fp32",))
    for layer in _LAYERS:
        coords = work.coords
        if layer.shuffled:
            coords = coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))]
        coords = coords.to(settings.device)
        yield Trial(
            case="maps",
            workload=work.name,
            shape=layer.title,
            reference=lambda layer=layer, coords=coords: _right(layer, coords, work),  # type: ignore[misc]
            competitors=[
                Competitor(name, dtype, threads, *_competitor(name, layer, coords, work))
                for name, dtype, threads in entrants(settings)
            ],
        )


def _right(layer: _Layer, coords: Tensor, work: Workload) -> list[Tensor]:
    pairs = _torch(layer, coords, work)
    return [peers.pairs_as_triples(pairs.taps, coords, pairs.coords, work.shape)]


def _torch(layer: _Layer, coords: Tensor, work: Workload) -> peers.Pairs:
    if layer.submanifold:
        return peers.torch_submanifold(coords, work.shape, layer.kernel)
    return peers.torch_strided(coords, work.shape, layer.kernel, layer.stride, layer.padding)


def _competitor(
    name: str, layer: _Layer, coords: Tensor, work: Workload
) -> tuple[Callable[[], Callable[[], Any]], Callable[[Any], list[Tensor]]]:
    """(build, compare)."""

    def triples(taps: list[tuple[Tensor, Tensor]], out_coords: Tensor) -> list[Tensor]:
        return [peers.pairs_as_triples(taps, coords, out_coords, work.shape)]

    if name == TORCH:
        return lambda: lambda: _torch(layer, coords, work), lambda pairs: triples(pairs.taps, pairs.coords)
    if name == OURS:
        return lambda: _ours(layer, coords, work), lambda built: triples(peers.table_taps(built.table), built.coords)

    def spconv() -> Callable[[], Any]:
        module = peers.spconv(SPCONVS[name])
        padding = layer.kernel // 2 if layer.submanifold else layer.padding
        sizes = (layer.kernel, layer.stride, padding, layer.submanifold)
        return lambda: peers.spconv_map(module, coords, work.shape, *sizes)

    return spconv, lambda built: triples(*peers.spconv_taps(built, coords, layer.submanifold))


def _ours(layer: _Layer, coords: Tensor, work: Workload) -> Callable[[], Any]:
    from common_kernels import kernel_map

    kind = "submanifold" if layer.submanifold else "strided"
    sizes = (layer.kernel, layer.stride, layer.padding)

    def call() -> Any:
        built = kernel_map(coords, work.shape, *sizes, batch_size=1, kind=kind)
        built.schedule  # noqa: B018  computed on first use; without it the map is not ready to multiply
        return built

    return call
