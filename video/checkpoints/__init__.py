"""Checkpoints of other projects."""

from video.checkpoints.load import convert, load_checkpoint
from video.checkpoints.read import read_state_dict

__all__ = ["convert", "load_checkpoint", "read_state_dict"]
