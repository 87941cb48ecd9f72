"""State dicts from files of others, which are taken for hostile."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common_kernels.checks import describe

# Names of what is trained (or shipped) beside the weights: {"state_dict": weights, "epoch": ...}.
CONTAINERS = ("state_dict", "model_state_dict", "model")
# Publishers' tools append the digest's first eight digits: resnet50-0676ba61.pth.
NAMED_DIGEST = re.compile(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$")
MIN_DIGEST = 8


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
    named = NAMED_DIGEST.search(path.name)
    check_digest(path, sha256 if sha256 is not None else named[1] if named else None)
    if path.suffix == ".safetensors":
        try:
            content: object = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
    else:
        _check_archive(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            lines = (line.strip() for line in str(error).splitlines() if "GLOBAL" in line)
            reason = next(lines, "it is not in the format of torch.save")
            raise ValueError(f"{path} is no file of tensors alone, and nothing else is loaded: {reason}") from None
        except Exception as error:  # whatever the parser raises on a file that is none
            raise ValueError(f"{path} is not a checkpoint: {type(error).__name__}: {error}") from None
    return state_dict_of(content, str(path))


def check_digest(path: Path, sha256: str | None) -> None:
    """Raise unless the file's SHA-256 begins with these digits."""
    if sha256 is None:
        return
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGEST},64}}", sha256.lower()):
        raise ValueError(f"sha256 must be {MIN_DIGEST} to 64 hexadecimal digits, got {sha256!r}")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(sha256.lower()):
        raise ValueError(f"{path}: its SHA-256 must begin with {sha256.lower()}, got {digest.hexdigest()[:16]}…")


def _check_archive(path: Path) -> None:
    """torch.save stores; an archive that is compressed could hold more than the memory."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not a checkpoint: {error}") from None
        if packed:
            raise ValueError(f"{path} is not a checkpoint: {packed[0]!r} in it is compressed, torch.save stores")


def state_dict_of(content: object, name: str) -> dict[str, Tensor]:
    """The tensors by key of what was loaded: itself, or what it holds under one of CONTAINERS.

    Raises:
        ValueError: there is something else than tensors in it. `name` says where.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{name} must hold a state dict, got {type(content).__name__} {str(content)[:40]!r}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{name}: its state dict must hold tensors, got {type(value).__name__} for {key!r}")
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{name}: {key} must be a dense tensor, got {value.layout}")
        # A view of one number may claim any shape.
        if value.device.type != "meta" and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{name}: {key} claims {describe(value)}, more than is stored")
    return dict(content)
