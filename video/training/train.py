"""The training loop, which can be stopped and continued, and the held-out measurements."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common_models import checkpoints
from video.models import TSM
from video.preprocess import Preprocess
from video.stream import RecentMean, Stream
from video.training.clips import CLASS_NAMES, PLACES, digits, live_frames, random_clips
from video.training.recipe import VARIANTS, Recipe


def build(recipe: Recipe, variant: str) -> TSM:
    """Build the network of a variant ("past", "both", "no-shift") with the recipe's random weights."""
    return TSM(**arguments(recipe, variant))


def arguments(recipe: Recipe, variant: str) -> dict[str, Any]:
    """The arguments of TSM for a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    return {
        "backbone": recipe.backbone,
        "num_classes": len(CLASS_NAMES),
        "num_segments": PLACES,
        "dropout": recipe.dropout,
        "backbone_arguments": {"width": recipe.width},
        **VARIANTS[variant],
    }


def train(recipe: Recipe, variant: str, checkpoint: Path | None = None, progress: bool = True) -> TSM:
    """A network trained by the recipe, in evaluation mode.

    Args:
        checkpoint: written after every epoch; where it exists, training goes on from it, to the same end.

    Raises:
        ValueError: not a checkpoint, or one of another recipe or variant.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build(recipe, variant).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        run = {"variant": variant, "recipe": asdict(recipe)}
        first = 0
        if checkpoint is not None and checkpoint.exists():
            first = checkpoints.resume(checkpoint, run, model, optimizer)
        images, _ = digits(held_out=False)
        epochs = checkpoints.shown(
            range(first, recipe.epochs), f"training {variant}", recipe.epochs, progress, first, "epoch"
        )
        for epoch in epochs:
            loss = train_epoch(model, optimizer, images, recipe, epoch)
            if progress:
                epochs.set_postfix(loss=f"{loss:.3f}")
            if checkpoint is not None:
                checkpoints.write(checkpoint, run, epoch + 1, model, optimizer)
    return model.to(memory_format=torch.contiguous_format).eval()


def train_epoch(model: TSM, optimizer: torch.optim.Optimizer, images: Tensor, recipe: Recipe, epoch: int) -> float:
    """Show every digit once; returns the mean loss. What it does depends on the recipe and the epoch alone."""
    # Not a sum with the epoch: recipes with neighbouring seeds would share most of their scenes.
    seed = recipe.seed * 10_007 + epoch + 1
    torch.manual_seed(seed)
    images = images[torch.randperm(len(images))]
    clips, labels = random_clips(images, seed, recipe.size)
    n_steps = math.ceil(len(images) / recipe.batch_size)
    model.train()
    total = 0.0
    for step, (clip, truth) in enumerate(zip(clips.split(recipe.batch_size), labels.split(recipe.batch_size))):
        factor = learning_rate(epoch * n_steps + step, recipe.epochs * n_steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        loss = F.cross_entropy(model(network_input(clip, recipe.size)), truth)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        total += loss.item() * len(truth)
    return total / len(images)


def learning_rate(step: int, steps: int) -> float:
    """Factor on the learning rate: 30 % of the steps of linear warm-up, then half a cosine to zero.

    With a warm-up of 10 % the networks stayed at chance: before the shifts are of use no frame is, and a large first
    step ends where neither is.
    """
    warm_up = max(1, steps * 3 // 10)
    return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm_up) / max(1, steps - warm_up)))


def network_input(clips: Tensor, size: int) -> Tensor:
    """[N * T, 3, size, size] of clips uint8 [N, T, H, W, 3], normalised as files are when the network runs on them."""
    return Preprocess(size, size)(clips.flatten(0, 1))[0]


def held_out_accuracy(model: TSM, recipe: Recipe) -> float:
    """Share of held-out clips that are classified rightly."""
    images, _ = digits(held_out=True)
    right = total = 0
    with torch.inference_mode():
        for i in range(recipe.held_out_rounds):
            clips, labels = random_clips(images, recipe.first_held_out_seed + i, recipe.size)
            logits = torch.cat([model(network_input(part, recipe.size)) for part in clips.split(60)])
            right += int((logits.argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def live_accuracy(model: TSM, recipe: Recipe, streams: int = 60, motions: int = 8) -> float:
    """Share of motions that a stream of changing motions names rightly at their last frame, by its last 8 answers."""
    images, _ = digits(held_out=True)
    seed = recipe.first_held_out_seed
    shown = torch.randint(len(CLASS_NAMES), (streams, motions), generator=torch.Generator().manual_seed(seed))
    clips = [
        torch.stack(
            [frame for frame, _ in live_frames(images[i % len(images)], shown[i].tolist(), seed + i, recipe.size)]
        )
        for i in range(streams)
    ]
    stream, recent = Stream(model), RecentMean(PLACES)
    state = recent_state = None
    right = 0
    for t, frames in enumerate(torch.stack(clips, 1)):
        logits, state = stream.step(network_input(frames[:, None], recipe.size), state)
        mean, recent_state = recent.step(logits, recent_state)
        if t % PLACES == PLACES - 1:
            right += int((mean.argmax(1) == shown[:, t // PLACES]).sum())
    return right / shown.numel()
