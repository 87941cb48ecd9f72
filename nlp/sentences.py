"""Models of sentence-transformers: their own `encode`, `predict` and `rank`, over networks that run without padding."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nlp.packing.architectures import network_of

_LIBRARY = "sentence_transformers."
# How sentence-transformers pools, and what the outputs are for where tokens are pruned.
_TASKS = {"cls": "cls", "mean": "pool", "max": "pool", "mean_sqrt_len_tokens": "pool"}


def is_sentence_model(model: object) -> bool:
    """Whether a model is a SentenceTransformer, CrossEncoder, SparseEncoder or MultiVectorEncoder, or a step of one."""
    return isinstance(model, nn.Module) and any(
        kind.__module__.startswith(_LIBRARY) for kind in type(model).__mro__
    ) and not hasattr(model, "get_base_model")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A network within a model.

    Attributes:
        path: of the step that calls it.
        step: that module.
        name: of the network within it.
        network: of Hugging Face, or adapters (peft) around one.
    """

    path: str
    step: nn.Module
    name: str
    network: nn.Module

    @property
    def full(self) -> str:
        """Path of the network in the model."""
        return f"{self.path}.{self.name}" if self.path else self.name


def places_of(model: nn.Module) -> list[Place]:
    """The networks within a model, outermost only.

    Raises:
        ValueError: there is none, as in models of static embeddings.
    """
    found: list[Place] = []
    for path, step in model.named_modules():
        if any(path == place.full or path.startswith(f"{place.full}.") for place in found):
            continue
        for name, child in step.named_children():
            if isinstance(getattr(getattr(network_of(child), "config", None), "model_type", None), str):
                if not is_sentence_model(child):
                    found.append(Place(path, step, name, child))
    if not found:
        steps = ", ".join(type(step).__name__ for step in model.children()) or "no steps"
        raise ValueError(f"model must hold a network of transformers, got {type(model).__name__} of {steps}")
    return found


def task_of(model: nn.Module) -> str:
    """What a model reads of its network's outputs: "pool", "cls" or "token"; "" where its network's head tells."""
    poolings = [step for step in model.modules() if type(step).__name__ == "Pooling"]
    if not poolings:
        return "token" if type(model).__name__ == "MultiVectorEncoder" else ""
    stated = [getattr(pooling, "pooling_mode", None) for pooling in poolings]
    modes = {mode for each in stated for mode in ([each] if isinstance(each, str) else each or [""])}
    tasks = {_TASKS.get(mode, "") for mode in modes}
    if len(tasks) > 1 or "" in tasks:
        raise ValueError(
            f"prune must be None for a model that pools by {', '.join(sorted(map(str, modes)))}: "
            f"which tokens that reads is only known for {', '.join(_TASKS)}"
        )
    return tasks.pop()


@dataclass(frozen=True)
class Handed:
    """A hook on the step that calls a network: later steps find the dtype that they are in, and no dropped token.

    Attributes:
        dtype: of the features, where the network computes in another one.
        dropped: the network drops tokens, whose states are zeros.
    """

    dtype: torch.dtype | None
    dropped: bool

    def __call__(self, step: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, MutableMapping):
            return None
        states, mask = output.get("token_embeddings"), output.get("attention_mask")
        if self.dropped and isinstance(states, Tensor) and isinstance(mask, Tensor) and mask.shape == states.shape[:2]:
            output["attention_mask"] = mask * (states != 0).any(-1).to(mask.dtype)
        if self.dtype is not None:
            for name, value in output.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    output[name] = value.to(self.dtype)
        return output
