"""The state of a fine-tuning run in one safetensors file, from which the run continues to the same end.

Not `common_models.checkpoints`: a run keeps the trained parameters alone, the teacher's answers as far as they are
known, and a number of steps that its first steps decide, none of which is a network's state.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common_models.files import replace_atomically

_FORMAT = "trisparse finetuning 1"


def check_place(path: Path) -> None:
    """Make the folder of a file that will be written after minutes of work.

    Raises:
        ValueError: the path is a folder.
        OSError: its folder cannot be made or written.
    """
    if path.is_dir():
        raise ValueError(f"checkpoint must be the path of a file, got the folder {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"checkpoint must lie in a folder that can be written, got {path}")


def write(path: Path, run: dict[str, Any], progress: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a file that appears whole or not at all.

    Args:
        run: what the run is: settings and fingerprints, as JSON knows them.
        progress: how far it is.
        tensors: parameters, the optimiser's moments, whatever else.
    """
    metadata = {"format": _FORMAT, "run": json.dumps(run), "progress": json.dumps(progress)}
    state = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replace_atomically(path) as partial:
        save_file(state, partial, metadata=metadata)


def load(path: Path, run: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Progress and tensors of a file that `write` wrote for the same run; None where there is no file.

    Raises:
        ValueError: the file is not of a run, or is of another one; the message names what differs.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"checkpoint must be a file of finetune, got {path}")
            wrote = json.loads(metadata["run"])
            differing = [key for key in {**run, **wrote} if run.get(key) != wrote.get(key)]
            if differing:
                key = differing[0]
                raise ValueError(
                    f"checkpoint {path} is of another run: its {key} is {wrote.get(key)!r}, here it is "
                    f"{run.get(key)!r}; continue with the same arguments, or name another file"
                )
            return json.loads(metadata["progress"]), {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}") from None


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers, as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": value for i, each in state.items() for name, value in each.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser what `optimizer_state` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            i, _, name = rest.partition(".")
            state.setdefault(int(i), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
