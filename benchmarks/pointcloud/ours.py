"""Ours, called as a user calls it: `pointcloud.models.MinkUNet` and `pointcloud.accelerate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pointcloud import peer_networks, peers
from benchmarks.pointcloud.workloads import Workload

# Parts of a batch norm, as peer_networks names them.
_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}


def network(
    work: Workload, weights: dict[str, Tensor], width: float, cached: bool, device: str, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """A call that runs our MinkUNet, accelerated, its maps built once or in each call."""
    import pointcloud

    model, _ = _model(work, weights, width, device)
    fast = pointcloud.accelerate(model.eval(), dtype=None if dtype == torch.float32 else dtype)
    features = work.features.to(device)
    kept = peers.tensor_of(pointcloud, work, features)

    @torch.no_grad()
    def call() -> Tensor:
        x = kept.replace_feature(features) if cached else peers.tensor_of(pointcloud, work, features)
        return _scores(fast(x))

    return call


def training_step(
    work: Workload, weights: dict[str, Tensor], width: float, labels: Tensor, device: str, compared: Sequence[str]
) -> Callable[[], list[Tensor]]:
    """A call that returns the loss and the gradients of the parameters named in `compared`."""
    import pointcloud

    model, parameters = _model(work, weights, width, device)
    model.train()
    features = work.features.to(device)

    def call() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        scores = _scores(model(peers.tensor_of(pointcloud, work, features)))
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        gradients = [parameters[name].grad for name in compared]
        return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]

    return call


def _scores(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.features


def _model(
    work: Workload, weights: dict[str, Tensor], width: float, device: str
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Our network with the peers' weights, and its parameters by the peers' names."""
    from pointcloud.models import MinkUNet

    model = MinkUNet(work.features.shape[1], len(weights["classifier.bias"]), width=width)
    parameters = copy_weights(model, peer_networks.layers(work.features.shape[1], width), weights)
    return model.to(device), parameters


@torch.no_grad()
def copy_weights(
    model: nn.Module, plan: Sequence[peer_networks.Conv], weights: dict[str, Tensor]
) -> dict[str, nn.Parameter]:
    """Put the peers' weights into our model, whose layers are registered in the order of `plan`.

    Raises:
        ValueError: the model's layers are not those of the plan.
    """
    from pointcloud.conv import SparseConvolution

    convs = [m for m in model.modules() if isinstance(m, SparseConvolution)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if (len(convs), len(norms), len(linear)) != (len(plan), len(plan), 1):
        raise ValueError(
            f"the model must have {len(plan)} convolutions, as many batch norms and 1 linear layer, "
            f"got {len(convs)}, {len(norms)} and {len(linear)}"
        )
    parameters: dict[str, nn.Parameter] = {}
    for layer, conv, norm in zip(plan, convs, norms, strict=True):
        weight = weights[f"{layer.name}.weight"]
        if conv.weight.shape != weight.shape:
            raise ValueError(f"{layer.name} must be {list(weight.shape)}, got {list(conv.weight.shape)}")
        conv.output_first_weight = weight.to(conv.weight)
        parameters[f"{layer.name}.weight"] = conv.weight
        for ours, theirs in _NORM.items():
            getattr(norm, theirs).copy_(weights[f"{layer.name}.{ours}"])
    for part in ("weight", "bias"):
        getattr(linear[0], part).copy_(weights[f"classifier.{part}"])
        parameters[f"classifier.{part}"] = getattr(linear[0], part)
    return parameters
