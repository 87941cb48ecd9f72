"""A whole MinkUNet in inference, with its maps rebuilt for each sweep and with its maps at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from benchmarks import competitors
from benchmarks.competitors import OURS, TORCH
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from benchmarks.pointcloud import ours, peer_networks, peers
from benchmarks.pointcloud.entrants import SPCONVS, entrants
from benchmarks.pointcloud.workloads import Workload

WIDTHS = (0.5, 1.0)
CLASSES = 19


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """Width 0.5 and 1.0, each with maps rebuilt and cached; all networks have the same weights."""
    pyramid = peer_networks.Pyramid.build(work.coords.to(settings.device), work.shape)
    for width in WIDTHS:
        weights = peer_networks.random_weights(work.features.shape[1], CLASSES, width)
        exact = {name: value.to(settings.device).double() for name, value in weights.items()}
        right = peer_networks.torch_network(work, exact, width, cached=True)()
        products = pyramid.products(peer_networks.layers(work.features.shape[1], width), CLASSES)
        for cached in (False, True):
            yield Trial(
                case="network",
                workload=work.name,
                shape=f"MinkUNet {width}, maps {'cached' if cached else 'rebuilt'}",
                reference=lambda right=right: [right],  # type: ignore[misc]
                competitors=[
                    Competitor(
                        name,
                        dtype,
                        threads,
                        partial(_build, name, dtype, width, cached, weights, work, settings),
                        lambda out: [out],
                        competitors.NETWORK_TOLERANCE[dtype],
                    )
                    for name, dtype, threads in entrants(settings)
                ],
                products=products,
            )


def _build(
    name: str, dtype: str, width: float, cached: bool, weights: dict[str, Tensor], work: Workload, settings: Settings
) -> Callable[[], Tensor]:
    if name == OURS:
        return ours.network(work, weights, width, cached, settings.device, DTYPES[dtype])
    cast = {key: value.to(settings.device, DTYPES[dtype]) for key, value in weights.items()}
    if name == TORCH:
        return peer_networks.torch_network(work, cast, width, cached)
    return peer_networks.spconv_network(peers.spconv(SPCONVS[name]), work, cast, width, cached)
