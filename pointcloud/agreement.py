"""How far an accelerated network's outputs agree with the original's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from common_kernels.checks import describe
from common_models.agreement import Agreement, compare_rows
from pointcloud.tensor import SparseConvTensor

__all__ = ["Agreement", "compare"]


def compare(model: nn.Module, faster: nn.Module, data: Any) -> Agreement:
    """Run both networks on the same inputs, without gradients.

    Args:
        data: one input (a SparseConvTensor or a Tensor), or an iterable of inputs; a tuple is one input of several
            arguments. Each output must be a floating tensor or a SparseConvTensor with one row per item, [N, C].

    Raises:
        TypeError: an output that is neither a tensor nor a SparseConvTensor.
        ValueError: an output that is not floating-point [N, C], or outputs of different shapes.

    Example:
        >>> import pointcloud, torch
        >>> model = pointcloud.SparseSequential(pointcloud.SubMConv3d(3, 16, 3)).eval()
        >>> voxels, _ = pointcloud.voxelize(torch.rand(1000, 3), voxel_size=0.1)
        >>> pointcloud.compare(model, pointcloud.accelerate(model), voxels).top1 > 0.99
        True
    """
    return compare_rows(model, faster, data, _rows, (SparseConvTensor, Tensor))


def _rows(output: Any) -> Tensor:
    """The output as rows [N, C]."""
    features = output.features if isinstance(output, SparseConvTensor) else output
    wanted = "a network's output must be a floating tensor or a SparseConvTensor of [N, C]"
    if not isinstance(features, Tensor):
        raise TypeError(f"{wanted}, got {type(features).__name__}")
    if features.ndim < 2 or not features.is_floating_point():
        raise ValueError(f"{wanted}, got {describe(features)}")
    return features.flatten(1)
