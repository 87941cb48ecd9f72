"""Frames of a simulated sensor that stands still: networks run on what changed, and on each frame as a whole.

A call runs frames forth and back, ten in all, so that each differs from the one before by a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import pointcloud
from benchmarks.competitors import NETWORK_TOLERANCE, OURS
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.pointcloud.workloads import Workload
from pointcloud.simulate import simulate_frames

WHOLE = "trisparse, each frame"
FRAMES, VOXEL, RANGE = 6, 0.1, (-60, -60, -4, 60, 60, 12)
# Seeds of scenes and how far to the sides vehicles drive, so that few and many voxels change.
SCENES = ((7, 5.0), (9, 5.0))


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """Networks that look a few voxels far and one that looks far, on scenes in which few and many voxels change. The
    workload names the row; the frames are the case's own. On a CPU, in fp32."""
    if settings.device != "cpu":
        return
    settings = replace(settings, dtypes=("fp32",))
    for seed, reach in SCENES:
        for jitter in (False, True) if reach == SCENES[0][1] else (False,):
            there = list(_frames(seed, reach, jitter))
            frames = [*there[1:], *there[-2::-1]]
            what = f"{_changing(frames):.0%} of the voxels change" + (", jitter" if jitter else "")
            for title, make in (("3 layers of 128", _plain), ("MinkUNet14 0.5", _u_net)):
                model = make()
                yield Trial(
                    case="stream",
                    workload=work.name,
                    shape=f"{title}, {what}",
                    reference=partial(_reference, model, frames),
                    competitors=[
                        Competitor(
                            name,
                            "fp32",
                            threads,
                            partial(_streamed if name == OURS else _whole, model, frames),
                            lambda out: [out],
                            NETWORK_TOLERANCE["fp32"],
                        )
                        for name in (WHOLE, OURS)
                        for threads in settings.threads
                    ],
                )


def _frames(seed: int, reach: float, jitter: bool) -> Iterator[pointcloud.SparseConvTensor]:
    for sweep in simulate_frames(seed, "hdl64", frames=FRAMES, reach=reach, jitter=jitter):
        xyz = torch.from_numpy(sweep.xyz)
        yield pointcloud.voxelize(xyz, VOXEL, RANGE, features=torch.ones(len(xyz), 1))[0]


def _plain() -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (1, 128, 128):
        layers += [pointcloud.SubMConv3d(channels, 128, 3, bias=False), nn.BatchNorm1d(128), nn.ReLU()]
    return pointcloud.SparseSequential(*layers, nn.Linear(128, 7)).eval()


def _u_net() -> nn.Module:
    return pointcloud.models.MinkUNet(1, 7, width=0.5, depth=14).eval()


def _again(x: pointcloud.SparseConvTensor) -> pointcloud.SparseConvTensor:
    """The same voxels, without the maps that an earlier call found."""
    return pointcloud.SparseConvTensor(x.features, x.indices, x.spatial_shape, x.batch_size)


def _rows(out: Any) -> Tensor:
    rows: Tensor = out if isinstance(out, Tensor) else out.features
    return rows


@torch.no_grad()
def _reference(model: nn.Module, frames: list[pointcloud.SparseConvTensor]) -> list[Tensor]:
    return [_rows(model(_again(frames[-1])))]


def _changing(frames: list[pointcloud.SparseConvTensor]) -> float:
    """The share of a frame's voxels that the frame before did not have, the mean over all frames."""
    keys = [frame.coordinates.keys() for frame in frames]
    return sum(float((~torch.isin(b, a)).float().mean()) for a, b in zip([keys[-1], *keys], keys)) / len(keys)


def _whole(model: nn.Module, frames: list[pointcloud.SparseConvTensor]) -> Callable[[], Tensor]:
    fast = pointcloud.accelerate(model)

    @torch.no_grad()
    def call() -> Tensor:
        return [_rows(fast(_again(x))) for x in frames][-1]

    return call


def _streamed(model: nn.Module, frames: list[pointcloud.SparseConvTensor]) -> Callable[[], Tensor]:
    stream = pointcloud.Stream(model)
    held = [stream.step(frames[-1])[1]]

    def call() -> Tensor:
        for x in frames:
            out, held[0] = stream.step(x, held[0])
        return _rows(out)

    return call
