"""Training on a labelled data set, in one process or several, and the measurement on its held-out split."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common_models import checkpoints
from common_models.checkpoints import shown
from pointcloud.models import MinkUNet
from pointcloud.points import PointCloud
from pointcloud.pretrained import ModelCard, round_like_saved
from pointcloud.segment import N_FEATURES, Segmenter
from pointcloud.training.batches import Batch, Sampling, batches, label_counts, weights_of
from pointcloud.training.datasets.scan import Dataset
from pointcloud.training.losses import lovasz_softmax
from pointcloud.training.memory import recomputed
from pointcloud.training.metrics import Confusion
from pointcloud.training.processes import rank_and_world, shared_norms, sum_gradients, total
from pointcloud.training.schedule import learning_rate
from pointcloud.training.transforms import MIXES

# Steps between two checkpoints: some minutes of training.
CHECKPOINT_EVERY = 100


@dataclass(frozen=True)
class Plan:
    """What a training on a data set does; the same plan, scans and versions give the same network on a machine.

    Attributes:
        seed: of weights, order of the scans, and their changes.
        width, depth: of the MinkUNet.
        voxel_size: metres.
        steps, batch_size: scans per step over all processes.
        learning_rate, weight_decay: of AdamW, with linear warm-up and cosine decay.
        augment: thin out, turn, mirror, scale, lift and jitter the scans.
        mix: "none", or "polar" or "laser": half of the scans are mixtures of two sweeps.
        precision: "fp32", or "bf16": autocast of the network; loss and weights stay in fp32.
        recompute: keep the inputs of the network's stages only (gradient checkpointing); the same network, in less
            memory and more time.
    """

    seed: int = 0
    width: float = 0.5
    depth: int = 18
    voxel_size: float = 0.05
    steps: int = 10_000
    batch_size: int = 2
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    augment: bool = True
    mix: str = "none"
    precision: str = "fp32"
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.mix not in MIXES:
            raise ValueError(f"mix must be one of {', '.join(MIXES)}, got {self.mix!r}")
        if self.mix != "none" and not self.augment:
            raise ValueError(f"mix is part of the augmentation: expected augment with mix {self.mix!r}, got none")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {self.precision!r}")
        for name in ("steps", "batch_size", "voxel_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training gave.

    Attributes:
        model: the network in evaluation mode, its weights as `save_pretrained` writes them.
        card: of the network, with the results on the held-out split.
        losses: of the steps of this run; those before a checkpoint are not repeated.
    """

    model: nn.Module
    card: ModelCard
    losses: tuple[float, ...]

    def __str__(self) -> str:
        found = self.card.results
        iou_of: dict[str, float | None] = found["iou"]
        rows = [f"  {name:22} {'absent' if iou is None else f'{iou:.3f}'}" for name, iou in iou_of.items()]
        mean = "unknown" if found["mean_iou"] is None else f"{found['mean_iou']:.3f}"
        return "\n".join([f"mean IoU {mean} on {found['scans']} scans", *rows])


def fit(
    data: Dataset,
    held_out: Dataset,
    plan: Plan,
    *,
    checkpoint: Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Trained:
    """A MinkUNet trained on a data set, measured on its held-out split.

    Where torchrun started several processes (`pointcloud.training.processes.joined`), each takes its share of every
    step's scans; batch norms measure all rows, and loss and network are those of one process, up to rounding.

    Args:
        checkpoint: a file written every CHECKPOINT_EVERY steps and at the end; where it exists, training goes on from
            it, to the same network.
        workers: threads that read scans ahead; their number changes no result.

    Raises:
        ValueError: a file of the data set that does not fit, other classes in the held-out split, a checkpoint of
            another run, no labelled point.
    """
    if data.class_names != held_out.class_names:
        raise ValueError(f"held_out must have the classes {data.class_names}, got {held_out.class_names}")
    rank, _world = rank_and_world()
    progress = progress and rank == 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        arguments: dict[str, Any] = {
            "in_channels": N_FEATURES,
            "num_classes": len(data.class_names),
            "width": plan.width,
            "depth": plan.depth,
        }
        model = MinkUNet(**arguments)
        losses = _train(model, data, plan, checkpoint, workers, progress)
    model.eval()
    round_like_saved(model)
    card = ModelCard(
        description=f"Trained on {data.name}.",
        architecture="MinkUNet",
        arguments=arguments,
        class_names=data.class_names,
        voxel_size=plan.voxel_size,
        recipe=asdict(plan) | {"data": data.name, "scans": len(data)},
        results=validate(model, held_out, plan.voxel_size, progress=progress),
    )
    return Trained(model, card, losses)


def _train(
    model: nn.Module, data: Dataset, plan: Plan, checkpoint: Path | None, workers: int, progress: bool
) -> tuple[float, ...]:
    rank, world = rank_and_world()
    optimizer = torch.optim.AdamW(model.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
    run = {"plan": asdict(plan), "data": data.name, "scans": len(data), "class_names": list(data.class_names)}
    first = 0
    if checkpoint is not None and checkpoint.exists():
        first = checkpoints.resume(checkpoint, run, model, optimizer)
    weights = weights_of(label_counts(data))
    sampling = Sampling(
        plan.seed, plan.batch_size, plan.voxel_size, plan.augment, plan.mix, rank=rank, world=world, workers=workers
    )
    losses: list[float] = []
    model.train()
    with ExitStack() as stack:
        stack.enter_context(shared_norms(model))
        if plan.recompute:
            stack.enter_context(recomputed(model))
        bar = shown(batches(data, sampling, first, plan.steps), "training", plan.steps, progress, first)
        for step, batch in enumerate(bar, first):
            torch.manual_seed(plan.seed + step)  # of dropout, so that a resumed training draws the same
            loss = batch_loss(model, batch, weights, plan.precision)
            optimizer.zero_grad()
            loss.backward()
            sum_gradients(list(model.parameters()))
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * learning_rate(step, plan.steps)
            optimizer.step()
            losses.append(float(total(loss.detach())))
            done = step + 1
            if checkpoint is not None and rank == 0 and (done % CHECKPOINT_EVERY == 0 or done == plan.steps):
                checkpoints.write(checkpoint, run, done, model, optimizer)
            if progress:
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return tuple(losses)


def batch_loss(model: nn.Module, batch: Batch, weights: Tensor, precision: str = "fp32") -> Tensor:
    """This process's part of a step's loss; the parts of all processes sum to the loss of the whole step.

    Cross-entropy with class weights, mean over the labelled voxels of all processes, and Lovász-Softmax of each scan,
    mean over the scans.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(batch.voxels)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    weights = weights.to(logits.dtype)
    known = batch.truth >= 0
    mass = total(weights[batch.truth[known]].sum()).clamp(min=1e-12)
    loss = F.cross_entropy(logits, batch.truth, weights, ignore_index=-1, reduction="sum") / mass
    for scan in batch.scan_of_voxel[known].unique().tolist():
        rows = known & (batch.scan_of_voxel == scan)
        loss = loss + lovasz_softmax(logits[rows], batch.truth[rows]) / batch.size
    return loss


@torch.no_grad()
def validate(model: nn.Module, data: Dataset, voxel_size: float, *, progress: bool = True) -> dict[str, object]:
    """IoU of every class and their mean over the labelled points of all scans, shared by all processes.

    A class that neither occurs nor is predicted has None and is no part of the mean.
    """
    rank, world = rank_and_world()
    segmenter = Segmenter(model, voxel_size=voxel_size, class_names=data.class_names, min_range=0.0)
    confusion = Confusion(len(data.class_names))
    share = range(rank, len(data), world)
    for i in shown(share, "held-out scans", len(share), progress, unit="scan"):
        scan = data[i]
        intensity = None if scan.intensity is None else torch.from_numpy(scan.intensity)
        cloud = PointCloud(torch.from_numpy(scan.xyz), intensity)
        confusion.add(torch.from_numpy(scan.labels), segmenter(cloud).labels)
    confusion.counts = total(confusion.counts)
    iou = confusion.iou().tolist()
    return {
        "mean_iou": None if all(x != x for x in iou) else round(confusion.mean_iou(), 4),
        "iou": {name: None if x != x else round(x, 4) for name, x in zip(data.class_names, iou)},
        "scans": len(data),
    }
