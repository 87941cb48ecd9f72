"""State dicts from files of others, which are taken for hostile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common_models.untrusted import check_digest, check_tensors, read_untrusted

# Names of what is trained (or shipped) beside the weights: {"state_dict": weights, "epoch": ...}.
CONTAINERS = ("state_dict", "model_state_dict", "model")


def read_state_dict(path: str | os.PathLike[str], sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, on the CPU, by key. Nothing in the file is executed.

    Args:
        path: a safetensors file, or one that torch.save wrote (the state dict, or a dict that holds it).
        sha256: the file's digest or its first digits, eight at least; otherwise the eight digits at the end of its
            name (`resnet50-0676ba61.pth`), if there are any.

    Raises:
        ValueError: another digest, or a file that is no checkpoint or holds more than tensors.
        OSError: it cannot be read.
    """
    path = Path(path)
    check_digest(path, sha256)
    return state_dict_of(read_untrusted(path), str(path))


def state_dict_of(content: object, name: str) -> dict[str, Tensor]:
    """The tensors by key of what was loaded: itself, or what it holds under one of CONTAINERS.

    Raises:
        ValueError: there is something else than tensors in it. `name` says where.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{name} must hold a state dict, got {type(content).__name__} {str(content)[:40]!r}")
    return check_tensors(content, name)
