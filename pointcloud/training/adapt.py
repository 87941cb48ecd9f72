"""Adapting a trained network to a place or a sensor with little memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common_models.acceleration import Acceleration
from pointcloud.convolution import SparseConvolution
from pointcloud.points import PointCloud
from pointcloud.tensor import SparseConvTensor
from pointcloud.training.batches import collate
from pointcloud.training.datasets.scan import Scan
from pointcloud.training.lean import LeanBackward, branched, can_branch
from pointcloud.training.losses import lovasz_softmax
from pointcloud.training.memory import SavedBytes
from pointcloud.training.schedule import learning_rate as rate_at

Labelled = PointCloud | tuple[Any, Tensor]


@dataclass(frozen=True, eq=False)
class Adapted:
    """What an adaptation gave.

    Attributes:
        model: the adapted network, in evaluation mode, with the layers of the given one; its card, if it has one.
        losses: of each step.
        trained: names of the parameters that were trained, those of the branches without their layers' weights.
        branches: names of the convolutions that had a branch, which is now part of their weight.
        activation_bytes: kept for the backward pass of the first example.
        full_activation_bytes: the same where every parameter is trained, batch norms in training mode.
    """

    model: nn.Module
    losses: tuple[float, ...]
    trained: tuple[str, ...]
    branches: tuple[str, ...]
    activation_bytes: int
    full_activation_bytes: int

    def __str__(self) -> str:
        less = self.full_activation_bytes / max(1, self.activation_bytes)
        kept, full = self.activation_bytes / 1e6, self.full_activation_bytes / 1e6
        return (
            f"{len(self.trained)} parameters and {len(self.branches)} branches trained in {len(self.losses)} steps, "
            f"loss {self.losses[0]:.3f} to {self.losses[-1]:.3f}; activations kept: {kept:.2f} MB instead of "
            f"{full:.2f} MB ({less:.1f} times less)"
        )


def adapt(
    model: nn.Module,
    labelled: Sequence[Labelled],
    *,
    steps: int = 100,
    learning_rate: float = 3e-3,
    rank: int = 8,
    class_names: Sequence[str] | None = None,
    head: str | None = None,
    voxel_size: float | None = None,
    seed: int = 0,
) -> Adapted:
    """Train the head, all biases and small residual branches of a copy of a network.

    The weights of the convolutions and the statistics of the batch norms stay, so that hardly any activation is kept
    for the backward pass: a bias needs none, a ReLU a bit, a branch `rank` numbers per row (after Cai et al., TinyTL,
    NeurIPS 2020; here the branches are linear, and end in the convolutions' own weights, so that the network is saved
    and accelerated as before).

    Args:
        labelled: clouds with labels (-1 where a point has none), for a network that reads the features of
            `sweep_voxels`; or pairs of the network's input and labels [N] of its rows. One a step, in turn.
        rank: of the branches; 0 for none.
        class_names: new classes: the head is replaced by a new one. By default the network's own stay.
        head: name of the last layer, a linear layer or a convolution; by default the last such layer of the network.
        voxel_size: metres, of clouds; by default that of the network's card.

    Raises:
        TypeError: examples of another type.
        ValueError: no examples, labels that do not fit, an accelerated network, no such head.

    Example:
        >>> import pointcloud
        >>> from pointcloud.simulate import simulate_sweep
        >>> from pointcloud.training import adapt
        >>> sweep = simulate_sweep(seed=3, sensor="hdl32").to_cloud()
        >>> done = adapt(pointcloud.load_pretrained("minkunet14-streets"), [sweep], steps=2)
        >>> done.activation_bytes < 0.4 * done.full_activation_bytes
        True
    """
    if isinstance(getattr(model, "acceleration", None), Acceleration):
        raise ValueError("model must be a network as it was built, got an accelerated one: pass restore(model)")
    if steps < 1 or rank < 0:
        raise ValueError(f"steps must be at least 1 and rank at least 0, got steps {steps}, rank {rank}")
    examples = _examples(model, labelled, voxel_size)
    model = copy.deepcopy(model)
    head = _head_of(model) if head is None else head
    if head not in dict(model.named_modules()):
        raise ValueError(f"head must be the name of a layer of the network, got {head!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if class_names is not None:
            _new_head(model, head, tuple(class_names))
        full = _saved_bytes(copy.deepcopy(model).requires_grad_(True).train(), examples[0])
        frozen = {name: p.requires_grad for name, p in model.named_parameters()}
        trained = _freeze(model.eval(), head)
        names = [] if rank == 0 else _branch_names(model, head, rank)
        with branched(model, names, rank, seed) as branches, LeanBackward():
            kept = _saved_bytes(model, examples[0])
            parameters = [p for p in model.parameters() if p.requires_grad]
            parameters += [branch.up for branch in branches.values()]
            losses = _descend(model, parameters, examples, steps, learning_rate, seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen.get(name, True))
    return Adapted(model, losses, tuple(trained), tuple(names), kept, full)


def _examples(
    model: nn.Module, labelled: Sequence[Labelled], voxel_size: float | None
) -> list[Callable[[], tuple[Any, Tensor]]]:
    if not len(labelled):
        raise ValueError("labelled must hold at least one example, got none")
    card: Any = getattr(model, "card", None)
    size = getattr(card, "voxel_size", None) if voxel_size is None else voxel_size
    return [_example(i, item, size) for i, item in enumerate(labelled)]


def _example(i: int, item: Labelled, voxel_size: float | None) -> Callable[[], tuple[Any, Tensor]]:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
        pair: tuple[Any, Tensor] = item
        return lambda: pair
    if not isinstance(item, PointCloud):
        raise TypeError(f"labelled[{i}] must be a PointCloud or a pair (input, labels), got {type(item).__name__}")
    if item.labels is None:
        raise ValueError(f"labelled[{i}] must have labels, got a cloud without")
    if voxel_size is None:
        raise ValueError("voxel_size must be given for clouds, as the network has no card that names its own")
    labels, metres = item.labels, voxel_size
    n_classes = int(labels.max()) + 1 if (labels >= 0).any() else 1
    intensity = None if item.intensity is None else item.intensity.numpy()
    scan = Scan(item.xyz.numpy(), labels.numpy(), intensity)

    def voxels() -> tuple[Any, Tensor]:
        batch = collate([scan], n_classes, metres, 1)
        return batch.voxels, batch.truth

    return voxels


def _head_of(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, SparseConvolution))]
    if not names:
        raise ValueError("head must be given: the network has no linear layer and no sparse convolution")
    return names[-1]


def _new_head(model: nn.Module, head: str, class_names: tuple[str, ...]) -> None:
    card: Any = getattr(model, "card", None)
    if card is not None and "num_classes" not in card.arguments:
        raise ValueError(f"class_names cannot change: {card.architecture} has no argument num_classes in its card")
    layer = model.get_submodule(head)
    bias = getattr(layer, "bias", None) is not None
    new: nn.Module
    if isinstance(layer, nn.Linear):
        new = nn.Linear(layer.in_features, len(class_names), bias).to(layer.weight)
    elif isinstance(layer, SparseConvolution) and layer.conv1x1 and layer.groups == 1:
        new = copy.deepcopy(layer)
        new.out_channels = len(class_names)
        shape = (len(class_names), *layer.weight.shape[1:])
        new.weight = nn.Parameter(layer.weight.new_empty(shape))
        new.bias = nn.Parameter(layer.weight.new_empty(len(class_names))) if bias else None
        new.reset_parameters()
    else:
        raise ValueError(f"head must be a linear layer or a convolution of kernel 1 to be replaced, got {layer}")
    parent, _, name = head.rpartition(".")
    setattr(model.get_submodule(parent), name, new)
    if card is not None:
        arguments = {**card.arguments, "num_classes": len(class_names)}
        model.card = replace(card, arguments=arguments, class_names=class_names, results={})
    if hasattr(model, "num_classes"):
        model.num_classes = len(class_names)  # type: ignore[assignment]


def _freeze(model: nn.Module, head: str) -> list[str]:
    """Names of the parameters that stay trainable: the head's and all biases."""
    trained = []
    for name, parameter in model.named_parameters():
        chosen = name.startswith(f"{head}.") or name.rpartition(".")[2] == "bias"
        parameter.requires_grad_(chosen)
        if chosen:
            trained.append(name)
    return trained


def _branch_names(model: nn.Module, head: str, rank: int) -> list[str]:
    return [name for name, module in model.named_modules() if name != head and can_branch(module, rank)]


def _saved_bytes(model: nn.Module, example: Callable[[], tuple[Any, Tensor]]) -> int:
    with SavedBytes(model) as saved:
        loss = _loss(model, *example())
    del loss
    return saved.total


def _descend(
    model: nn.Module,
    parameters: list[nn.Parameter],
    examples: Sequence[Callable[[], tuple[Any, Tensor]]],
    steps: int,
    rate: float,
    seed: int,
) -> tuple[float, ...]:
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    generator = np.random.default_rng(seed)
    order: list[int] = []
    losses = []
    for step in range(steps):
        if not order:
            order = generator.permutation(len(examples)).tolist()
        loss = _loss(model, *examples[order.pop()]())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(step, steps)
        optimizer.step()
        losses.append(loss.item())
    return tuple(losses)


def _loss(model: nn.Module, input: Any, labels: Tensor) -> Tensor:
    out = model(input)
    logits = out.features if isinstance(out, SparseConvTensor) else out
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must be [{len(logits)}], one per row of the logits, got {list(labels.shape)}")
    if len(labels) and int(labels.max()) >= logits.shape[1]:
        raise ValueError(f"labels must be below the network's {logits.shape[1]} classes, got {int(labels.max())}")
    known = labels >= 0
    if not known.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[known], labels[known]) + lovasz_softmax(logits[known], labels[known])
