"""Checkpoints of other libraries and projects."""

from pointcloud.checkpoints.convert import convert_optimizer_state, convert_state_dict
from pointcloud.checkpoints.load import load_checkpoint
from pointcloud.checkpoints.read import Checkpoint, read_checkpoint

__all__ = ["Checkpoint", "convert_optimizer_state", "convert_state_dict", "load_checkpoint", "read_checkpoint"]
