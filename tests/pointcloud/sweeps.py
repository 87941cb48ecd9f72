"""Small stand-ins for sweeps and networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pointcloud import PointCloud
from pointcloud.models import MinkUNet
from pointcloud.pretrained import ModelCard
from pointcloud.simulate import Sensor, Sweep, simulate_sweep

NAMES = ("ground", "wall", "thing")
ARGUMENTS: dict[str, Any] = {"in_channels": 6, "num_classes": len(NAMES), "width": 0.125, "depth": 14}
SENSOR = Sensor("small", tuple(np.linspace(-25.0, 8.0, 12).tolist()), 120, 1.8, 60.0, 1.0, 0.02, 0.0, 200.0, 0.3)


def small_sweep(seed: int = 0) -> Sweep:
    """Some thousand points of a simulated street."""
    return simulate_sweep(seed, SENSOR)


def street(n: int = 600, seed: int = 0) -> PointCloud:
    """Flat ground and a wall around a sensor that stands 1.8 m above the ground."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(n, 2, generator=generator)
    ground = torch.stack([20 * u[:, 0] - 10, 20 * u[:, 1] - 10, torch.full((n,), -1.8)], 1)
    wall = torch.stack([torch.full((n,), 8.0), 20 * u[:, 0] - 10, 5 * u[:, 1] - 1.8], 1)
    return PointCloud(torch.cat([ground, wall]))


def tiny_card(**changes: object) -> ModelCard:
    """The card of `tiny_network`."""
    fields = dict(
        description="A network of random numbers.",
        architecture="MinkUNet",
        arguments=ARGUMENTS,
        class_names=NAMES,
        voxel_size=0.4,
    )
    return ModelCard(**{**fields, **changes})  # type: ignore[arg-type]


def tiny_network(seed: int = 0) -> MinkUNet:
    """Random weights and, as after training, batch norms that are not those of a fresh layer."""
    torch.manual_seed(seed)
    model = MinkUNet(**ARGUMENTS)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.01, 0.03)
    return model.eval()
