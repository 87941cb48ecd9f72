"""The training loop, which can be stopped and continued, and the held-out measurement."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common_models import checkpoints
from common_models.checkpoints import shown
from pointcloud.models import MinkUNet
from pointcloud.pretrained import ModelCard, round_like_saved
from pointcloud.segment import N_FEATURES, Segmenter, brightness, sweep_voxels
from pointcloud.simulate import CLASSES, Sweep, simulate_sweep
from pointcloud.training.augment import augment
from pointcloud.training.batches import majority, weights_of
from pointcloud.training.losses import lovasz_softmax
from pointcloud.training.metrics import Confusion
from pointcloud.training.recipe import Recipe
from pointcloud.training.schedule import learning_rate

# Steps between two checkpoints: some minutes of training.
CHECKPOINT_EVERY = 100


def train(recipe: Recipe, *, checkpoint: Path | None = None, progress: bool = True) -> tuple[nn.Module, ModelCard]:
    """A network trained by the recipe, in evaluation mode, and its card with the held-out results.

    Args:
        checkpoint: a file written every CHECKPOINT_EVERY steps and at the end; where it exists, training goes on from
            it, to the same network.

    Raises:
        ValueError: a checkpoint of another recipe, or a file that is no checkpoint.
    """
    torch.manual_seed(recipe.seed)
    arguments: dict[str, Any] = {
        "in_channels": N_FEATURES,
        "num_classes": len(CLASSES),
        "width": recipe.width,
        "depth": recipe.depth,
    }
    model = MinkUNet(**arguments)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    run = {"recipe": asdict(recipe)}
    first = 0
    if checkpoint is not None and checkpoint.exists():
        first = checkpoints.resume(checkpoint, run, model, optimizer)
    simulated = _simulate(recipe, recipe.train_sweeps, 0)
    sweeps = list(shown(simulated, "simulating", recipe.train_sweeps, progress, unit="sweep"))
    weights = class_weights(sweeps)
    generator = np.random.default_rng([recipe.seed, 7])
    # The batches of the steps that are done are drawn again, so that the generator stands where it stood.
    batches = islice(_batches(sweeps, recipe, generator), first, None)
    bar = shown(batches, "training", recipe.steps, progress, first)
    model.train()
    for step, batch in enumerate(bar, first):
        xyz, bright, labels, batch_index = batch
        voxels, point_to_voxel = sweep_voxels(xyz, recipe.voxel_size, bright, batch_index, recipe.batch_size)
        truth = voxel_labels(labels, point_to_voxel, len(voxels.features))
        logits = model(voxels)
        loss = F.cross_entropy(logits, truth, weights) + lovasz_softmax(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate(step, recipe.steps)
        optimizer.step()
        done = step + 1
        if checkpoint is not None and (done % CHECKPOINT_EVERY == 0 or done == recipe.steps):
            checkpoints.write(checkpoint, run, done, model, optimizer)
        if progress and step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{(logits.argmax(1) == truth).float().mean():.3f}")
    model.eval()
    round_like_saved(model)
    card = ModelCard(
        description="A small demonstration network, trained on simulated street scenes only; no real sweep was seen.",
        architecture="MinkUNet",
        arguments=arguments,
        class_names=CLASSES,
        voxel_size=recipe.voxel_size,
        recipe=asdict(recipe),
        results=evaluate(model, recipe, progress=progress),
    )
    return model, card


def evaluate(model: nn.Module, recipe: Recipe, *, progress: bool = True) -> dict[str, object]:
    """IoU per class and mean, over the points of the held-out sweeps beyond the segmenter's `min_range`.

    In all, and by sensor. Nearer points belong to the carrier and are left without a label.
    """
    segmenter = Segmenter(model, voxel_size=recipe.voxel_size, class_names=CLASSES)
    total = Confusion(len(CLASSES))
    by_sensor = {sensor: Confusion(len(CLASSES)) for sensor in recipe.sensors}
    sweeps = _simulate(recipe, recipe.test_sweeps, recipe.first_test_seed)
    for i, sweep in enumerate(shown(sweeps, "held-out sweeps", recipe.test_sweeps, progress, unit="sweep")):
        cloud = sweep.to_cloud()
        prediction = segmenter(cloud).labels
        truth = torch.where(cloud.xyz.norm(dim=1) < segmenter.min_range, -1, cloud.labels)
        for confusion in (total, by_sensor[recipe.sensors[i % len(recipe.sensors)]]):
            confusion.add(truth, prediction)
    return {
        "mean_iou": round(total.mean_iou(), 4),
        "iou": {name: round(float(value), 4) for name, value in zip(CLASSES, total.iou())},
        "mean_iou_by_sensor": {sensor: round(c.mean_iou(), 4) for sensor, c in by_sensor.items()},
        "sweeps": recipe.test_sweeps,
    }


def class_weights(sweeps: list[Sweep]) -> Tensor:
    """[C]: each class's share to the power of -0.3, mean 1 over the points."""
    return weights_of(np.sum([np.bincount(sweep.labels, minlength=len(CLASSES)) for sweep in sweeps], 0))


def voxel_labels(labels: Tensor, point_to_voxel: Tensor, n_voxels: int) -> Tensor:
    """The most frequent label of each voxel's points, [M]; the lower label where two are as frequent."""
    return majority(labels, point_to_voxel, n_voxels, len(CLASSES))


def _simulate(recipe: Recipe, n: int, first_seed: int) -> Iterable[Sweep]:
    """Sweeps in order; the ray caster releases the interpreter lock, so threads share the work."""

    def one(i: int) -> Sweep:
        n_sensors = len(recipe.sensors)
        return simulate_sweep(first_seed + i, recipe.sensors[i % n_sensors], keep_ego=i // n_sensors % 2 == 1)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(one, range(n))


def _batches(sweeps: list[Sweep], recipe: Recipe, generator: np.random.Generator) -> Iterable[tuple[Tensor, ...]]:
    """`recipe.steps` batches (xyz [N, 3], brightness [N], labels [N], batch index [N]); each sweep comes in turn.

    Each ring's intensities are scaled by a factor of its own, since the lasers of a real sensor differ, and 40 % of the
    sweeps come without: the network must not trust brightness where the shape says otherwise.
    """
    order: list[int] = []
    for _ in range(recipe.steps):
        samples: list[tuple[Tensor, ...]] = []
        for _ in range(recipe.batch_size):
            if not order:
                order = generator.permutation(len(sweeps)).tolist()
            sweep = sweeps[order.pop()]
            xyz, kept = augment(sweep.xyz, sweep.ring, generator)
            gain = np.exp(generator.normal(0, 0.5, int(sweep.ring.max(initial=0)) + 1)).astype(np.float32)
            bright = brightness(torch.from_numpy((sweep.intensity * gain[sweep.ring])[kept]))
            bright *= float(generator.random() > 0.4)
            labels = torch.from_numpy(sweep.labels[kept])
            samples.append((torch.from_numpy(xyz), bright, labels, torch.full_like(labels, len(samples))))
        yield tuple(torch.cat(column) for column in zip(*samples))
