"""Checkpoint files of others: the weights in them, and what they say of their writer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from common_models.untrusted import check_digest, check_tensors, read_untrusted
from pointcloud.checkpoints.sources import Evidence

# Names of what is trained beside counters, optimisers and options; one may hold another.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net")
MAX_DEPTH = 3
# What wrappers of networks put before all names.
PREFIXES = ("module.", "_orig_mod.")
WRITERS = {"mmdet3d_version": "mmdet3d", "mmengine_version": "mmengine", "mmcv_version": "mmcv"}


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one network.

    Attributes:
        name: of the file, for messages.
        tensors: by key, without the prefixes of wrappers.
        within: where in the file they were, such as "model_state"; empty where the file is the state dict.
        evidence: what the file says of its writer.
        class_names: what the file calls the classes; empty where it does not.
    """

    name: str
    tensors: dict[str, Tensor]
    within: str = ""
    evidence: Evidence = field(default_factory=Evidence)
    class_names: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike[str], sha256: str | None = None) -> Checkpoint:
    """Read a file that torch.save wrote, or a safetensors file. Nothing in it is executed.

    Args:
        sha256: the file's digest or its first digits, eight at least; otherwise the eight digits at the end of its
            name (`minkunet-0d8ec25b.pth`), if there are any.

    Raises:
        ValueError: another digest, a file that is no checkpoint, names code or holds no state dict.
        OSError: it cannot be read.
    """
    path = Path(path)
    check_digest(path, sha256)
    return checkpoint_of(read_untrusted(path), str(path))


def checkpoint_of(content: object, name: str = "checkpoint") -> Checkpoint:
    """What a loaded file holds: a state dict, or a dict that holds one under one of CONTAINERS.

    Raises:
        ValueError: there is none, or something else than tensors in it. `name` says where.
    """
    found, within = _state_dict_in(content)
    if found is None:
        what = sorted(map(str, content))[:6] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{name} must hold a state dict, itself or as {' or '.join(CONTAINERS)}, got {what}")
    tensors = check_tensors(found, name)
    prefix = ""
    while wrapper := next((p for p in PREFIXES if all(key.startswith(prefix + p) for key in tensors)), None):
        prefix += wrapper
    tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    evidence = Evidence(layer_versions(found, prefix), _writers(content), tuple(tensors))
    return Checkpoint(name, tensors, within, evidence, _class_names(content))


def _state_dict_in(content: object, depth: int = 0) -> tuple[Mapping[str, Tensor] | None, str]:
    """The state dict and its place."""
    if not isinstance(content, Mapping) or not content or depth > MAX_DEPTH:
        return None, ""
    for key in CONTAINERS:
        inner, within = _state_dict_in(content.get(key), depth + 1)
        if inner is not None:
            return inner, f"{key}.{within}" if within else key
    return (content, "") if any(isinstance(value, Tensor) for value in content.values()) else (None, "")


def layer_versions(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, int]:
    """The version of each module's class that wrote a state dict, from its metadata."""
    metadata = getattr(state_dict, "_metadata", None)
    return {
        name.removeprefix(prefix): entry["version"]
        for name, entry in (metadata.items() if isinstance(metadata, Mapping) else ())
        if isinstance(name, str) and isinstance(entry, Mapping) and isinstance(entry.get("version"), int)
    }


def _writers(content: object) -> dict[str, str]:
    """The frameworks that a file names, with their versions."""
    if not isinstance(content, Mapping):
        return {}
    meta = content.get("meta")
    stated = {WRITERS[key]: meta[key] for key in WRITERS if key in meta} if isinstance(meta, Mapping) else {}
    found = {name: version for name, version in stated.items() if isinstance(version, str)}
    version = content.get("version")  # OpenPCDet writes "pcdet+0.5.2+commit"
    if isinstance(version, str) and (pcdet := re.match(r"pcdet\+([\d.]+)", version)):
        found["pcdet"] = pcdet[1]
    return found


def _class_names(content: object) -> tuple[str, ...]:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return ()
    of_data = meta.get("dataset_meta")
    names = (of_data if isinstance(of_data, Mapping) else meta).get("classes", meta.get("CLASSES", ()))
    fits = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if fits else ()
