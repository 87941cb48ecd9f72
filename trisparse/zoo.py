"""Pretrained networks of all domains under one loader."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

DOMAINS = ("pointcloud", "video", "nlp")


def list_pretrained() -> list[str]:
    """Names that `load_pretrained` knows, of all domains, sorted."""
    return sorted(_owners())


def load_pretrained(name_or_path: str | os.PathLike[str]) -> Any:
    """A network with its weights, in evaluation mode, its model card as attribute `card`.

    Args:
        name_or_path: a name of `list_pretrained()`, a weights file written by a domain's `save_pretrained`, or a folder
            that holds a Hugging Face language model.

    Raises:
        ValueError: an unknown name (the message lists close ones), or a file that no domain reads.
    """
    name = os.fspath(name_or_path)
    owners = _owners()
    if name in owners:
        return owners[name].load_pretrained(name)
    if (Path(name) / "config.json").is_file():
        from nlp.pretrained import load_pretrained as load_language_model

        return load_language_model(name)
    if not Path(name).is_file():
        close = difflib.get_close_matches(name, owners, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"name_or_path must be a file or one of {', '.join(owners) or '(none)'}, got {name!r}{hint}")
    refusals = []
    for domain in _domains():
        try:
            return domain.load_pretrained(name)
        except ValueError as error:
            refusals.append(str(error))
    raise ValueError("; ".join(refusals))


def weights_file(name: str) -> Path:
    """Where the weights of a name of `list_pretrained()` lie."""
    owner = _owners()[name]
    if hasattr(owner, "weights_file"):  # some lie in packages of their own
        return Path(owner.weights_file(name))
    return Path(owner.WEIGHTS) / f"{name}.safetensors"


def _domains() -> list[ModuleType]:
    """The `pretrained` modules of the domains that have one."""
    names = [f"{domain}.pretrained" for domain in DOMAINS]
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name) is not None]


def _owners() -> dict[str, ModuleType]:
    """The domain's module for each pretrained name."""
    owners: dict[str, ModuleType] = {}
    for domain in _domains():
        for name in domain.list_pretrained():
            if name in owners:
                raise RuntimeError(f"{name} is pretrained in {owners[name].__name__} and in {domain.__name__}")
            owners[name] = domain
    return owners
