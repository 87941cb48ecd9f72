"""Training of networks on simulated sweeps and labelled data sets: `python -m pointcloud.training -o F.safetensors`."""

from pointcloud.training.adapt import Adapted, adapt
from pointcloud.training.datasets import DATASETS, Dataset, LabelMap, Scan, open_dataset
from pointcloud.training.fit import Plan, Trained, fit, validate
from pointcloud.training.losses import lovasz_softmax
from pointcloud.training.memory import SavedBytes, recomputed
from pointcloud.training.metrics import Confusion
from pointcloud.training.processes import joined, shared_norms
from pointcloud.training.recipe import Recipe
from pointcloud.training.train import evaluate, train

__all__ = [
    "DATASETS",
    "Adapted",
    "Confusion",
    "Dataset",
    "LabelMap",
    "Plan",
    "Recipe",
    "SavedBytes",
    "Scan",
    "Trained",
    "adapt",
    "evaluate",
    "fit",
    "joined",
    "lovasz_softmax",
    "open_dataset",
    "recomputed",
    "shared_norms",
    "train",
    "validate",
]
