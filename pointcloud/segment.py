"""From a cloud to a label per point: voxels in, a network over them, labels back to the points."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common_kernels.gather_rows import gather_rows
from common_models.modes import check_evaluating
from common_models.threads import set_threads
from pointcloud.accelerate import accelerate
from pointcloud.points import PointCloud
from pointcloud.pretrained import load_pretrained
from pointcloud.tensor import SparseConvTensor
from pointcloud.voxels.grid import VoxelGrid, check_finite
from pointcloud.voxels.grouping import group_points
from pointcloud.voxels.voxelize import voxelize

N_FEATURES = 6
# Metres that bring heights (kerbs matter) and ranges to the order of one.
HEIGHT_SCALE, RANGE_SCALE = 0.5, 30.0
MIN_RANGE = 1.2  # metres


@dataclass(frozen=True)
class Segmentation:
    """Labels of a cloud, and what they cost.

    Attributes:
        labels: [N] int64, index into class_names, -1 for points that were left out.
        class_names: the classes.
        voxels: number of occupied voxels.
        seconds: wall time of each stage, in order.
    """

    labels: Tensor
    class_names: tuple[str, ...]
    voxels: int
    seconds: dict[str, float] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Number of points of each class that occurs, "unlabelled" included."""
        counts = torch.bincount(self.labels + 1, minlength=len(self.class_names) + 1).tolist()
        return {name: n for name, n in zip((*self.class_names, "unlabelled"), counts[1:] + counts[:1]) if n}


def brightness(intensity: Tensor) -> Tensor:
    """Rank of each intensity [N], as float32, within its sweep: float32 in -1..1, equal values sharing theirs.

    Sensors differ in scale and response, not in which of two surfaces is the brighter one.
    """
    # Bits of floats in the order of their values: of negative ones all bits turned, others above them. -0 counts as 0.
    bits = (intensity.to(torch.float32) + 0.0).view(torch.int32).to(torch.int64)
    key = torch.where(bits < 0, ~bits, bits + 2**31)
    group = group_points(key, 2**32, None)
    below = (group.offsets[:-1] + group.offsets[1:])[group.of_point]
    return (below / max(1, len(intensity)) - 1).to(torch.float32)


def sweep_voxels(
    xyz: Tensor,
    voxel_size: float,
    brightness: Tensor | None = None,
    batch_index: Tensor | None = None,
    batch_size: int | None = None,
) -> tuple[SparseConvTensor, Tensor]:
    """Voxels of LiDAR sweeps with the features that the networks of `pointcloud.training` read.

    Features [M, 6]: mean height and mean horizontal range of the voxel's points in the sensor's frame (in units of
    0.5 m and 30 m), their mean offset from the voxel's centre in voxels, their mean brightness. Nothing depends on the
    sensor's intensity scale or on the direction of travel.

    Args:
        xyz: float32 [N, 3], metres, sensor at the origin, z up.
        voxel_size: metres.
        brightness: float32 [N] as `brightness` returns it, zeros where a sweep has no intensities.
        batch_index: [N], the sweep of each point.

    Returns:
        The voxels, and point_to_voxel [N].
    """
    bright = xyz.new_zeros(len(xyz)) if brightness is None else brightness
    columns = torch.cat([xyz, bright[:, None]], 1)
    voxels, point_to_voxel = voxelize(columns, voxel_size, batch_index=batch_index, batch_size=batch_size)
    mean, bright = voxels.features.split([3, 1], dim=1)
    grid: VoxelGrid = voxels.coordinates.voxel_grid  # type: ignore[attr-defined]
    centre = grid.centers(voxels.indices[:, 1:]).to(mean.dtype)
    reach = mean[:, :2].norm(dim=1, keepdim=True)
    parts = [mean[:, 2:] / HEIGHT_SCALE, reach / RANGE_SCALE, (mean - centre) / voxel_size, bright]
    return voxels.replace_feature(torch.cat(parts, 1)), point_to_voxel


class Segmenter:
    """Labels the points of LiDAR sweeps with a network over their voxels.

    Args:
        model: a network from SparseConvTensor to logits per voxel that reads the features of `sweep_voxels`, as
            `load_pretrained` returns it; or that network after `accelerate`.
        voxel_size: metres; by default the network's own.
        class_names: by default the network's own.
        min_range: points nearer to the sensor are left out: returns of the carrier's mount and beams without an echo,
            which some sensors report at the origin.

    Raises:
        ValueError: no voxel_size or class_names for a network that does not know its own, a negative min_range.

    Example:
        >>> import pointcloud
        >>> from pointcloud.simulate import simulate_sweep
        >>> segmenter = pointcloud.Segmenter(pointcloud.load_pretrained("minkunet14-streets"))
        >>> result = segmenter(simulate_sweep(seed=7, sensor="hdl32").to_cloud())
        >>> max(result.counts().items(), key=lambda item: item[1])[0]
        'road'
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        voxel_size: float | None = None,
        class_names: tuple[str, ...] | None = None,
        min_range: float = MIN_RANGE,
    ) -> None:
        card: Any = getattr(model, "card", None)
        if card is None and (voxel_size is None or class_names is None):
            raise ValueError("voxel_size and class_names must be given for a model that load_pretrained did not return")
        if not min_range >= 0:
            raise ValueError(f"min_range must be metres from 0 on, got {min_range}")
        self.model = model
        self.voxel_size = card.voxel_size if voxel_size is None else voxel_size
        self.class_names = card.class_names if class_names is None else tuple(class_names)
        self.min_range = min_range

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> Segmenter:
        """A segmenter with the network of a name or file that `load_pretrained` takes, accelerated.

        Args:
            dtype: see `pointcloud.accelerate`: None computes in the network's own, "auto" in the fastest.
            threads: that torch computes with, in the whole process; None leaves their number as it is.
            options: arguments of `Segmenter` instead of those of the network's card.

        Raises:
            TypeError: a dtype that is neither a name nor a torch dtype.
            ValueError: no such network, an unknown dtype, a number of threads below 1.
        """
        set_threads(threads)
        return cls(accelerate(load_pretrained(name_or_path), dtype=dtype), **options)

    def stream(self, clouds: Iterable[PointCloud]) -> Iterator[Segmentation]:
        """The labels of each cloud, in the order in which the clouds come, each as soon as it is there."""
        return map(self, clouds)

    @torch.no_grad()  # not inference_mode, whose labels nobody could train with
    def __call__(self, cloud: PointCloud) -> Segmentation:
        """Label every point of a cloud in the frame of its sensor, z up, metres.

        Raises:
            ValueError: a coordinate that is not finite, a network whose logits are not one per class, or one in
                training mode.
        """
        check_evaluating(self.model)  # batch norms would learn from this cloud
        check_finite(cloud.xyz)  # NaN would pass for a point too near
        seconds: dict[str, float] = {}
        with _timed(seconds, "voxels"):
            kept = (cloud.xyz.square().sum(1) >= self.min_range**2).nonzero().squeeze(1)
            bright = None if cloud.intensity is None else brightness(cloud.intensity.index_select(0, kept))
            # A third of the time of `xyz[kept]`.
            voxels, point_to_voxel = sweep_voxels(cloud.xyz.index_select(0, kept), self.voxel_size, bright)
        with _timed(seconds, "network"):
            logits = self.model(voxels)
        if logits.shape[1] != len(self.class_names):
            raise ValueError(f"class_names must name the network's {logits.shape[1]} classes, got {self.class_names}")
        with _timed(seconds, "labels"):
            labels = torch.full((len(cloud),), -1, dtype=torch.int64, device=cloud.device)
            labels[kept] = gather_rows(logits.argmax(1), point_to_voxel)
        return Segmentation(labels, self.class_names, len(voxels.features), seconds)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[stage] = time.perf_counter() - start
