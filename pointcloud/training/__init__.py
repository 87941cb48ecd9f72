"""Training the demonstration network on simulated sweeps: `python -m pointcloud.training -o weights.safetensors`."""

from pointcloud.training.losses import lovasz_softmax
from pointcloud.training.metrics import Confusion
from pointcloud.training.recipe import Recipe
from pointcloud.training.train import evaluate, train

__all__ = ["Confusion", "Recipe", "evaluate", "lovasz_softmax", "train"]
