"""Stopping and resuming of a training: one file that is replaced as the training goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common_models.files import replace_atomically


def write(path: Path, run: Mapping[str, Any], done: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Keep a training as it is after `done` steps; the file appears whole or not at all.

    Args:
        run: what the result depends on, as the recipe: a training goes on only from a checkpoint with the same.
    """
    content = {"run": dict(run), "done": done, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with replace_atomically(path) as partial:
        torch.save(content, partial)


def resume(path: Path, run: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint of this very run into network and optimiser; the number of steps that are done.

    Raises:
        ValueError: a file that is no checkpoint of a training, or one of another run; the message names what differs.
    """
    try:
        kept = torch.load(path, weights_only=True)
        found, done = dict(kept["run"]), int(kept["done"])
        states = kept["model"], kept["optimizer"]
    except Exception as error:  # a file of any other content: the unpickler raises whatever its bytes lead it to
        raise ValueError(f"{path} is not a checkpoint of this training ({error!r}); remove it") from error
    differing = [name for name in {**run, **found} if run.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{path} is the checkpoint of another run: its {name} is {found.get(name)!r}, here it is "
            f"{run.get(name)!r}: remove the file"
        )
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    return done


def shown(steps: Iterable[Any], what: str, total: int, progress: bool, first: int = 0, unit: str = "step") -> Any:
    """`steps` with a progress bar, where one is wanted."""
    if not progress:
        return steps
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress bars need tqdm: pip install tqdm, or pass progress=False") from error
    return tqdm(steps, what, total, initial=first, unit=unit)
