"""Submanifold k3 layers with their map at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks import competitors
from benchmarks.competitors import OURS, TORCH
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.pointcloud import peers
from benchmarks.pointcloud.entrants import SPCONVS, entrants
from benchmarks.pointcloud.workloads import Workload

CHANNELS = ((4, 32), (16, 16), (32, 32), (64, 64), (96, 96), (128, 128))
GPU_CHANNELS = (*CHANNELS, (256, 256))


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """One trial per pair of channel counts."""
    coords = work.coords.to(settings.device)
    pairs = peers.torch_submanifold(coords, work.shape)
    for cin, cout in GPU_CHANNELS if settings.device == "cuda" else CHANNELS:
        weight = competitors.weights(cout, 3, cin, settings, "fp32").double()
        x = competitors.features(work.n_rows, cin, settings, "fp32").double()
        yield Trial(
            case="layers",
            workload=work.name,
            shape=f"submanifold k3, {cin} to {cout}",
            reference=lambda x=x, weight=weight: [peers.torch_convolve(x, pairs, weight)],  # type: ignore[misc]
            competitors=[
                Competitor(
                    name,
                    dtype,
                    threads,
                    partial(_build, name, dtype, cin, cout, pairs, work, settings),
                    lambda out: [out],
                    competitors.LAYER_TOLERANCE[dtype],
                )
                for name, dtype, threads in entrants(settings)
            ],
            # The library multiplies as many rows, spread evenly over the taps.
            products=[(pairs.count // 27, cin, cout)] * 27,
            values=work.n_rows * (cin + cout) + 27 * cin * cout,
            index_bytes=4 * pairs.count,
        )


def _build(
    name: str, dtype: str, cin: int, cout: int, pairs: peers.Pairs, work: Workload, settings: Settings
) -> Callable[[], Tensor]:
    x = competitors.features(work.n_rows, cin, settings, dtype)
    weight = competitors.weights(cout, 3, cin, settings, dtype)
    if name == TORCH:
        return competitors.inference(lambda: peers.torch_convolve(x, pairs, weight))
    if name == OURS:
        import pointcloud as module
    else:
        module = peers.spconv(SPCONVS[name])
    layer = module.SubMConv3d(cin, cout, 3, bias=False, indice_key="map").to(x.device, x.dtype).eval()
    layer.weight.data.copy_(weight)
    tensor: Any = peers.tensor_of(module, work, x)
    if name != OURS:
        with peers.one_thread():
            peers.hand_maps(tensor, competitors.inference(lambda: layer(tensor))())
    return competitors.inference(lambda: layer(tensor).features)
