"""spconv.utils: voxel generators that detectors call; box operations are refused."""

from contextlib import nullcontext

from pointcloud.shims.spconv.cppconstants import CPU_ONLY_BUILD, BoxOps  # type: ignore[attr-defined]
from pointcloud.shims.spconv.refusal import refuse
from pointcloud.shims.spconv.utils.point_to_voxel import (
    Point2VoxelCPU1d,
    Point2VoxelCPU2d,
    Point2VoxelCPU3d,
    Point2VoxelCPU4d,
    Point2VoxelGPU1d,
    Point2VoxelGPU2d,
    Point2VoxelGPU3d,
    Point2VoxelGPU4d,
)

refuse(
    globals(),
    "non_max_suppression_cpu rotate_non_max_suppression_cpu rbbox_intersection rbbox_iou rbbox_iou_loss",
    "boxes are none of Trisparse's data; torchvision.ops and the detectors' own packages have these functions",
)

__all__ = [
    "CPU_ONLY_BUILD",
    "BoxOps",
    "Point2VoxelCPU1d",
    "Point2VoxelCPU2d",
    "Point2VoxelCPU3d",
    "Point2VoxelCPU4d",
    "Point2VoxelGPU1d",
    "Point2VoxelGPU2d",
    "Point2VoxelGPU3d",
    "Point2VoxelGPU4d",
    "nullcontext",
]
