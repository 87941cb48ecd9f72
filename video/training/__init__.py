"""A motion task from real handwritten digits, and the training of the demonstration networks on it."""

from video.training.clips import CLASS_NAMES, digits, live_frames, motion_clips, random_clips
from video.training.recipe import VARIANTS, Recipe
from video.training.record import write_live_clip
from video.training.train import build, held_out_accuracy, live_accuracy, train

__all__ = [
    "CLASS_NAMES",
    "VARIANTS",
    "Recipe",
    "build",
    "digits",
    "held_out_accuracy",
    "live_accuracy",
    "live_frames",
    "motion_clips",
    "random_clips",
    "train",
    "write_live_clip",
]
