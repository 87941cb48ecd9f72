"""Checkpoints of other libraries and projects."""

from pointcloud.checkpoints.convert import convert_optimizer_state, convert_state_dict

__all__ = ["convert_optimizer_state", "convert_state_dict"]
