"""The halving convolution k2 s2, which no spconv keeps a map for, and its inverse, which uses that map."""

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

CHANNELS = ((32, 32), (64, 64), (128, 128))


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """Down and up for each channel count. Down is compared by coordinates: libraries number new rows as they like."""
    coords = work.coords.to(settings.device)
    down = peers.torch_strided(coords, work.shape, 2, 2, 0)
    up = down.turned(coords, work.shape)
    for cin, cout in CHANNELS:
        for direction, pairs in (("down", down), ("up", up)):
            rows = down.coords.shape[0] if direction == "up" else work.n_rows
            x = competitors.features(rows, cin, settings, "fp32").double()
            weight = competitors.weights(cout, 2, cin, settings, "fp32").double()
            yield Trial(
                case="resample",
                workload=work.name,
                shape=f"k2 s2 {direction}, {cin} to {cout}, map {'at hand' if direction == 'up' else 'rebuilt'}",
                reference=lambda x=x, w=weight, p=pairs: [  # type: ignore[misc]
                    peers.by_coordinates(p.coords, peers.torch_convolve(x, p, w))
                ],
                competitors=[
                    Competitor(
                        name,
                        dtype,
                        threads,
                        partial(_build, name, dtype, cin, cout, direction, down, work, settings),
                        lambda out: [peers.by_coordinates(*out)],
                        competitors.LAYER_TOLERANCE[dtype],
                    )
                    for name, dtype, threads in entrants(settings)
                ],
                products=[(source.numel(), cin, cout) for source, _ in pairs.taps],
                values=rows * cin + pairs.coords.shape[0] * cout + 8 * cin * cout,
                index_bytes=4 * pairs.count,
            )


def _build(
    name: str, dtype: str, cin: int, cout: int, direction: str, down: peers.Pairs, work: Workload, settings: Settings
) -> Callable[[], tuple[Tensor, Tensor]]:
    coarse = direction == "up"
    x = competitors.features(down.coords.shape[0] if coarse else work.n_rows, cin, settings, dtype)
    weight = competitors.weights(cout, 2, cin, settings, dtype)
    coords = work.coords.to(settings.device)
    if name == TORCH:
        pairs = down.turned(coords, work.shape) if coarse else down
        if coarse:
            return competitors.inference(lambda: (pairs.coords, peers.torch_convolve(x, pairs, weight)))
        return competitors.inference(lambda: _torch_down(x, coords, weight, work))
    if name == OURS:
        import pointcloud as module
    else:
        module = peers.spconv(SPCONVS[name])
    fine = competitors.features(work.n_rows, cin, settings, dtype)
    halve = module.SparseConv3d(cin, cout, 2, 2, bias=False, indice_key="down").to(x.device, x.dtype).eval()
    tensor: Any = peers.tensor_of(module, work, fine)
    if not coarse:
        halve.weight.data.copy_(weight)
        return competitors.inference(lambda: _rows(halve(peers.tensor_of(module, work, x))))
    inverse = module.SparseInverseConv3d(cin, cout, 2, indice_key="down", bias=False).to(x.device, x.dtype).eval()
    inverse.weight.data.copy_(weight)
    small = competitors.inference(lambda: halve(tensor))()
    # x is numbered as `down` numbers its rows, which is sorted; the library's rows may be in another order.
    order = peers.row_order(small.indices)
    rows = x.new_empty(x.shape)
    rows[order] = x
    small = small.replace_feature(rows)
    return competitors.inference(lambda: _rows(inverse(small)))


def _torch_down(x: Tensor, coords: Tensor, weight: Tensor, work: Workload) -> tuple[Tensor, Tensor]:
    pairs = peers.torch_strided(coords, work.shape, 2, 2, 0)
    return pairs.coords, peers.torch_convolve(x, pairs, weight)


def _rows(tensor: Any) -> tuple[Tensor, Tensor]:
    return tensor.indices, tensor.features
