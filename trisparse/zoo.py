"""Pretrained networks of all domains under one loader."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from common_models.names import did_you_mean

DOMAINS = ("pointcloud", "video", "nlp")
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def list_pretrained() -> list[str]:
    """Names that `load_pretrained` knows, of all domains, sorted.

    Example:
        >>> import trisparse
        >>> "minkunet14-streets" in trisparse.list_pretrained()
        True
    """
    return sorted(_owners())


def load_pretrained(name_or_path: str | os.PathLike[str], *, download: bool = False) -> Any:
    """A network with its weights, in evaluation mode, its model card as attribute `card`.

    Args:
        name_or_path: a name of `list_pretrained()`, a weights file written by a domain's `save_pretrained`, a folder
            that holds a Hugging Face language model, or with `download` the name of one on the Hugging Face hub.
        download: whether a language model that is not on this machine may be fetched.

    Raises:
        ValueError: an unknown name (the message lists close ones), a file that no domain reads, or one that cannot be
            downloaded.
        OSError: a file cannot be read.

    Example:
        >>> import trisparse
        >>> type(trisparse.load_pretrained("tsm-motion-digits")).__name__
        'TSM'
    """
    name = os.fspath(name_or_path)
    for owner in _domains():  # one after the other: the first may know it, and the others need not be loaded
        if name in owner.list_pretrained():
            return owner.load_pretrained(name)
    path = Path(name)
    if (path / "config.json").is_file():
        return _language_model(name, download)
    if not path.is_file():
        owners = _owners()
        hint = did_you_mean(name, owners, cutoff=0.5)
        if not download:
            known = ", ".join(owners) or "(none)"
            raise ValueError(f"name_or_path must be a file or one of {known}, got {name!r}{hint}")
        if path.exists() or path.is_absolute() or path.suffix in WEIGHTS_SUFFIXES:
            raise ValueError(
                f"download=True fetches a language model by its name on the Hugging Face hub, got the path {name!r}"
            )
        try:
            return _language_model(name, download)
        except ValueError as error:
            raise ValueError(f"{error}; only language models can be downloaded{hint}") from error
    from common_models.pretrained import domain_of

    stated = domain_of(path)
    refusals = []
    for domain in [domain for domain in _domains() if domain.__name__ == f"{stated}.pretrained"] or list(_domains()):
        try:
            return domain.load_pretrained(name)
        except ValueError as error:
            refusals.append(str(error))
    raise ValueError("; ".join(refusals))


def _language_model(name: str, download: bool) -> Any:
    from nlp.pretrained import load_pretrained as load

    return load(name, download=download)


def fingerprint(model: str) -> dict[str, Any]:
    """Files of a model on the disk with their sizes and times: a setting, since a model can change under its name."""
    path = Path(model)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return {"model files": [[name, state.st_size, state.st_mtime_ns] for name, state in found]}


def weights_file(name: str) -> Path:
    """Where the weights of a name of `list_pretrained()` lie."""
    owner = _owners()[name]
    if hasattr(owner, "weights_file"):  # some lie in packages of their own
        return Path(owner.weights_file(name))
    return Path(owner.WEIGHTS) / f"{name}.safetensors"


def _domains() -> Iterator[ModuleType]:
    """The `pretrained` modules of the domains that have one, each loaded when it is asked for."""
    for domain in DOMAINS:
        if importlib.util.find_spec(domain) and importlib.util.find_spec(f"{domain}.pretrained"):
            yield importlib.import_module(f"{domain}.pretrained")


def _owners() -> dict[str, ModuleType]:
    """The domain's module for each pretrained name."""
    owners: dict[str, ModuleType] = {}
    for domain in _domains():
        for name in domain.list_pretrained():
            if name in owners:
                raise RuntimeError(f"{name} is pretrained in {owners[name].__name__} and in {domain.__name__}")
            owners[name] = domain
    return owners
