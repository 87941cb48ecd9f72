"""spconv.pytorch.utils: voxels with a limited number of points, and back."""

from __future__ import annotations

from torch import Tensor

from pointcloud.shims.spconv.refusal import refuse
from pointcloud.voxels import PointToVoxel

refuse(globals(), "SpconvOps get_current_stream torch_tensor_to_tv", "it belongs to cumm's tensors")


def gather_features_by_pc_voxel_id(
    seg_res_features: Tensor, pc_voxel_id: Tensor, invalid_value: int | float = 0
) -> Tensor:
    """Each point's row of its voxel's features.

    Args:
        seg_res_features: [M, ...] of the voxels.
        pc_voxel_id: int64 [N], -1 for a point without a voxel, as `generate_voxel_with_id` gives it.
        invalid_value: fills the rows of such points.

    Returns:
        [N, ...] on the features' device.
    """
    index = pc_voxel_id.to(seg_res_features.device)
    out = seg_res_features.new_full((len(index), *seg_res_features.shape[1:]), invalid_value)
    valid = (index != -1).nonzero().squeeze(1)
    return out.index_copy(0, valid, seg_res_features[index[valid]])


__all__ = ["PointToVoxel", "gather_features_by_pc_voxel_id"]
