"""Sparse encoders of detectors with maps rebuilt for each sweep, on one sweep and on the voxels of ten.

VoxelBackBone8x and VoxelResBackBone8x, written from their lists of layers as their users write them, on any module with
spconv's names. Grid and voxels as CenterPoint has them on nuScenes: 0.1 x 0.1 x 0.2 m, 41 x 1024 x 1024 cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import competitors
from benchmarks.competitors import OURS
from benchmarks.data import data_file
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from benchmarks.pointcloud import peers
from benchmarks.pointcloud.entrants import SPCONVS, entrants
from benchmarks.pointcloud.workloads import Workload

SHAPE = (41, 1024, 1024)
LOW, VOXEL = np.array([-51.2, -51.2, -5.0]), np.array([0.1, 0.1, 0.2])
SWEEPS = (1, 10)
AS_LOADED = "trisparse, as loaded"


@dataclass(frozen=True)
class Layer:
    """A convolution with batch norm and ReLU. A block is two submanifold ones with the block's input added."""

    name: str
    kind: str
    cin: int
    cout: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (1, 1, 1)


def layers(cin: int, residual: bool) -> list[Layer]:
    """The encoder from its input to its output at an eighth of the resolution."""
    two, last = (2, 2, 2), 128 if residual else 64
    found = [Layer("conv_input", "subm", cin, 16)]
    channels = [16, 16, 32, 64, last]
    for stage in range(1, 5):
        before, here = channels[stage - 1], channels[stage]
        if stage > 1:
            padding = (0, 1, 1) if stage == 4 else (1, 1, 1)
            found.append(Layer(f"conv{stage}.down", "strided", before, here, stride=two, padding=padding))
        kind, count = ("block", 2) if residual else ("subm", 1 if stage == 1 else 2)
        found += [Layer(f"conv{stage}.{i}", kind, here, here) for i in range(count)]
    return [*found, Layer("conv_out", "strided", last, 128, (3, 1, 1), (2, 1, 1), (0, 0, 0))]


def voxels(sweeps: int) -> tuple[Tensor, Tensor]:
    """(indices [N, 4] int32 (batch, z, y, x) sorted, features [N, 5]) of the nuScenes sweep, and of ten of it.

    No ten sweeps in a row are at hand: the further ones are the same points, each time turned by up to half the step
    between two of the sensor's firings and moved by some centimetres, as noise of the sensor and of the car's own
    motion would move them. They fill more voxels than one sweep and fewer than ten.
    """
    points = np.fromfile(data_file("pointcloud/nuscenes_lidar_top.pcd.bin"), np.float32).reshape(-1, 5)
    generator = np.random.default_rng(0)
    clouds = []
    for sweep in range(sweeps):
        angle = 0.0 if sweep == 0 else np.deg2rad(generator.uniform(-0.17, 0.17))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = points.astype(np.float64)
        moved[:, :2] = moved[:, :2] @ turn.T
        if sweep:
            moved[:, :3] += generator.normal(0, 0.03, (len(points), 3))
        moved[:, 3] /= 255
        moved[:, 4] = 0.05 * sweep
        clouds.append(moved)
    cloud = np.concatenate(clouds)
    cells = np.floor((cloud[:, :3] - LOW) / VOXEL).astype(np.int64)
    inside = ((cells >= 0) & (cells < np.array([1024, 1024, 40]))).all(1)
    cloud, cells = cloud[inside], cells[inside][:, ::-1]
    keys, voxel = np.unique(np.ravel_multi_index(tuple(cells.T), SHAPE), return_inverse=True)
    count = np.bincount(voxel)
    mean = np.stack([np.bincount(voxel, cloud[:, c]) / count for c in range(5)], 1)
    mean[:, :3] /= 51.2
    where = np.stack([np.zeros_like(keys), *np.unravel_index(keys, SHAPE)], 1)
    return torch.from_numpy(where.astype(np.int32)), torch.from_numpy(mean.astype(np.float32))


def encoder(module: Any, plan: list[Layer]) -> nn.Module:
    """The encoder on a module with spconv's names, in evaluation mode, with random weights that keep values near 1."""

    class Block(module.SparseModule):
        def __init__(self, channels: int, key: str) -> None:
            super().__init__()
            self.conv1 = module.SubMConv3d(channels, channels, 3, padding=1, bias=False, indice_key=key)
            self.bn1 = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)
            self.relu = nn.ReLU()
            self.conv2 = module.SubMConv3d(channels, channels, 3, padding=1, bias=False, indice_key=key)
            self.bn2 = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

        def forward(self, x: Any) -> Any:
            out = self.conv1(x)
            out = out.replace_feature(self.relu(self.bn1(out.features)))
            out = self.conv2(out)
            out = out.replace_feature(self.bn2(out.features))
            return out.replace_feature(self.relu(out.features + x.features))

    parts: list[nn.Module] = []
    level = 0
    for layer in plan:
        level += layer.kind == "strided"
        key = f"level{level}"
        if layer.kind == "block":
            parts.append(Block(layer.cin, key))
            continue
        kind = module.SubMConv3d if layer.kind == "subm" else module.SparseConv3d
        options = {"padding": layer.padding, "bias": False, "indice_key": key}
        if layer.kind == "strided":
            options |= {"stride": layer.stride, "indice_key": f"down{level}"}
        conv = kind(layer.cin, layer.cout, layer.kernel, **options)
        parts.append(module.SparseSequential(conv, nn.BatchNorm1d(layer.cout, eps=1e-3, momentum=0.01), nn.ReLU()))
    network = nn.Sequential(*parts)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator) if value.is_floating_point() else None
            if noise is None:
                continue
            if value.ndim == 5:
                value.copy_(noise * (2 / (6 * value.shape[-1])) ** 0.5)
            elif name.endswith(("weight", "running_var")):
                value.copy_(1 + 0.1 * noise.abs())
            else:
                value.copy_(0.1 * noise)
    return network.eval()


def reference(plan: list[Layer], weights: dict[str, Tensor], indices: Tensor, features: Tensor) -> list[Tensor]:
    """[features] of the last layer in plain torch and float64, rows sorted by their cells."""
    values = iter({name: value.double() for name, value in weights.items() if value.is_floating_point()}.values())
    x, coords, shape = features.double(), indices, SHAPE
    submanifold: peers.Pairs | None = None

    def conv_bn(x: Tensor, pairs: peers.Pairs) -> Tensor:
        weight, gamma, beta, mean, var = (next(values) for _ in range(5))
        return F.batch_norm(peers.torch_convolve(x, pairs, weight), mean, var, gamma, beta, eps=1e-3)

    for layer in plan:
        if layer.kind == "strided":
            pairs = peers.torch_strided(coords, shape, layer.kernel, layer.stride, layer.padding)
            coords, shape, submanifold = pairs.coords, pairs.shape, None  # type: ignore[assignment]
            x = conv_bn(x, pairs).relu()
            continue
        submanifold = submanifold or peers.torch_submanifold(coords, shape)
        if layer.kind == "subm":
            x = conv_bn(x, submanifold).relu()
        else:
            x = (conv_bn(conv_bn(x, submanifold).relu(), submanifold) + x).relu()
    return [x]


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """Both encoders, on one sweep and on ten. `work` only says that the sweep is at hand."""
    for residual in (False, True):
        plan = layers(5, residual)
        for sweeps in SWEEPS:
            indices, features = voxels(sweeps)
            name = "VoxelResBackBone8x" if residual else "VoxelBackBone8x"
            right = partial(_right, plan, indices, features)
            found = []
            for competitor, dtype, threads in entrants(settings):
                if competitor == competitors.TORCH:
                    continue
                names = (AS_LOADED, OURS) if competitor == OURS and dtype == "fp32" else (competitor,)
                found += [
                    Competitor(
                        each, dtype, threads, partial(_build, each, dtype, plan, indices, features, settings),
                        _sorted, competitors.NETWORK_TOLERANCE[dtype],
                    )
                    for each in names
                ]  # fmt: skip
            shape = f"{name}, {'one sweep' if sweeps == 1 else f'{sweeps} sweeps'}, {len(indices)} voxels"
            yield Trial("detectors", work.name, shape, right, found)


def _right(plan: list[Layer], indices: Tensor, features: Tensor) -> list[Tensor]:
    import pointcloud

    return reference(plan, encoder(pointcloud, plan).state_dict(), indices, features)


def _sorted(out: Any) -> list[Tensor]:
    return [peers.by_coordinates(out.indices, out.features)]


def _build(
    name: str, dtype: str, plan: list[Layer], indices: Tensor, features: Tensor, settings: Settings
) -> Callable[[], Any]:
    import pointcloud

    module: Any = peers.spconv(SPCONVS[name]) if name in SPCONVS else pointcloud
    network = encoder(module, plan).to(settings.device)
    where, values = indices.to(settings.device), features.to(settings.device)
    if name == OURS:
        network = pointcloud.accelerate(network, dtype=DTYPES[dtype])
    elif dtype != "fp32":
        network, values = network.to(DTYPES[dtype]), values.to(DTYPES[dtype])
    return competitors.inference(lambda: network(module.SparseConvTensor(values, where, list(SHAPE), 1)))
