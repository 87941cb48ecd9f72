"""Recompute only what changes: any 2D network on live video at the cost of the changed pixels."""

from common_models.acceleration import restore
from video.delta.calibration import Calibration, calibrate
from video.delta.network import DeltaNetwork, accelerate
from video.delta.work import Work

__all__ = ["Calibration", "DeltaNetwork", "Work", "accelerate", "calibrate", "restore"]
