"""One training step of MinkUNet 0.5 without the optimiser: forward, loss, backward, maps rebuilt. fp32.

spconv has no backward pass on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.competitors import OURS, TORCH
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.pointcloud import ours, peer_networks
from benchmarks.pointcloud.entrants import entrants
from benchmarks.pointcloud.workloads import Workload

WIDTH = 0.5
CLASSES = 19
# Gradients that are compared: of the first and the last layer, so that every other one lies between them.
COMPARED = ("stem.0.weight", "classifier.weight")
# Batch norm in training divides by small variances, forty times over, in fp32.
TOLERANCE = 2e-2


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """One trial."""
    settings = replace(settings, dtypes=("fp32",))
    plan = peer_networks.layers(work.features.shape[1], WIDTH)
    weights = peer_networks.random_weights(work.features.shape[1], CLASSES, WIDTH)
    labels = torch.randint(CLASSES, (work.n_rows,), generator=torch.Generator().manual_seed(2)).to(settings.device)
    pyramid = peer_networks.Pyramid.build(work.coords.to(settings.device), work.shape)
    products = pyramid.products(plan, CLASSES)
    yield Trial(
        case="training",
        workload=work.name,
        shape=f"MinkUNet {WIDTH}, forward and backward",
        reference=lambda: _torch_step(work, weights, labels, settings.device, torch.float64)(),
        competitors=[
            Competitor(name, dtype, threads, _builder(name, work, weights, labels, settings), list, TOLERANCE)
            for name, dtype, threads in entrants(settings)
            if name in (TORCH, OURS)
        ],
        # Each product of the forward pass, and two for its gradients.
        products=products * 3,
    )


def _builder(
    name: str, work: Workload, weights: dict[str, Tensor], labels: Tensor, settings: Settings
) -> Callable[[], Callable[[], Any]]:
    if name == TORCH:
        return lambda: _torch_step(work, weights, labels, settings.device, torch.float32)
    return lambda: ours.training_step(work, weights, WIDTH, labels, settings.device, COMPARED)


def _torch_step(
    work: Workload, weights: dict[str, Tensor], labels: Tensor, device: str, dtype: torch.dtype
) -> Callable[[], list[Tensor]]:
    """A call that returns the loss and the compared gradients."""
    plan = peer_networks.layers(work.features.shape[1], WIDTH)
    trained = {
        name: value.to(device, dtype, copy=True).requires_grad_(not name.endswith((".mean", ".var")))
        for name, value in weights.items()
    }
    features, coords = work.features.to(device, dtype), work.coords.to(device)

    def call() -> list[Tensor]:
        for value in trained.values():
            value.grad = None
        pyramid = peer_networks.Pyramid.build(coords, work.shape)
        scores = peer_networks.forward(peer_networks.TorchEngine(plan, trained, pyramid, training=True), features)
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        gradients = [trained[name].grad for name in COMPARED]
        return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]

    return call
