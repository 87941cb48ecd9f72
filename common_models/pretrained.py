"""Weights files: safetensors with a model card in the header, matrices in fp16, read by the domain that wrote them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from common_kernels.checks import describe
from common_models.acceleration import Acceleration
from common_models.cards import ModelCard
from common_models.files import replace_atomically
from common_models.names import did_you_mean

Card = TypeVar("Card", bound=ModelCard)
FP16_LIMIT = torch.finfo(torch.float16).max


def list_weights(folder: Path) -> list[str]:
    """Names of the weights files in a domain's folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def locate(name_or_path: str | os.PathLike[str], folder: Path, names: Iterable[str] | None = None) -> Path:
    """The file of a name in `folder`, else of a path.

    Args:
        names: what a user may say instead of a path; by default the files of the folder.

    Raises:
        ValueError: neither a known name nor a file; the message lists close names.
    """
    name = os.fspath(name_or_path)
    known = list_weights(folder) if names is None else sorted(names)
    if name in known and (folder / f"{name}.safetensors").is_file():
        return folder / f"{name}.safetensors"
    path = Path(name)
    if not path.is_file():
        listed = ", ".join(known) or "(there are none)"
        raise ValueError(f"name_or_path must be a file or one of {listed}, got {name!r}{did_you_mean(name, known)}")
    return path


def refuse_download(download: bool) -> None:
    """Raise ValueError where a download was asked for of a domain whose networks are files."""
    if download:
        raise ValueError("download must be False: only language models can be fetched from a hub")


def read_card(path: Path, domain: str) -> dict[str, Any] | None:
    """The card in a weights file, as JSON; None where the file holds none.

    Raises:
        ValueError: not a safetensors file, a card of another domain, or one that is no JSON object.
    """
    metadata = read_metadata(path)
    if "card" not in metadata:
        return None
    wrote = metadata.get("domain", domain)  # files from before the header named it
    if wrote != domain:
        raise ValueError(f"{path} holds a network of {wrote}, read it with {wrote}.load_pretrained")
    try:
        card = json.loads(metadata["card"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its model card cannot be read: {error}") from error
    if not isinstance(card, dict):
        raise ValueError(f"{path}: its model card must be a JSON object, got {type(card).__name__}")
    return card


def domain_of(path: Path) -> str | None:
    """The domain that a weights file names in its header; None for a file without, or of another kind."""
    try:
        return read_metadata(path).get("domain")
    except ValueError:
        return None


def write_weights(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    card: Mapping[str, Any],
    domain: str,
    fp32: bool = False,
    half: bool = True,
) -> None:
    """Write tensors and card; matrices in fp16, everything else as it is. The file appears whole or not at all.

    Args:
        fp32: floating tensors that stay are written in fp32.
        half: False leaves matrices as they are too.

    Raises:
        ValueError: a matrix that is not finite in fp16.
        TypeError: a card that is not made of JSON's values.
        ImportError: safetensors is not installed.
    """
    save_file = _safetensors().torch.save_file
    metadata = {"card": json.dumps(card), "domain": domain}
    rounded = {key: _rounded(key, value.detach().cpu(), fp32, half) for key, value in state.items()}
    with replace_atomically(path) as partial:
        save_file(rounded, partial, metadata=metadata)


def _rounded(key: str, value: Tensor, fp32: bool, half: bool) -> Tensor:
    if value.is_floating_point():
        if value.ndim > 1 and half:
            if value.numel() and not float(value.abs().max()) <= FP16_LIMIT:
                raise ValueError(f"{key} must be finite and within ±{FP16_LIMIT:g}, the range of fp16, to be saved")
            value = value.half()
        elif fp32:
            value = value.float()
    # Packed convolutions keep their weights channels-last.
    return value.contiguous()


def round_like_saved(model: nn.Module) -> None:
    """Round the parameters as `save_pretrained` does, so that what is measured is what is shipped."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half().to(parameter.dtype))


def check_saveable(model: nn.Module) -> None:
    """Raise ValueError for an accelerated network: the modules of its file would not be those of its card."""
    if isinstance(getattr(model, "acceleration", None), Acceleration):
        raise ValueError(
            "model must be a network as it was built, got an accelerated one, whose folded layers its card cannot "
            "build again: save restore(model), and accelerate it after loading"
        )


def card_of(model: nn.Module, card: Card | None, kind: type[Card]) -> Card:
    """The card to save a network with: the one given, else the network's attribute `card`.

    Raises:
        TypeError: a card of another kind.
        ValueError: there is none.
    """
    found = getattr(model, "card", None) if card is None else card
    if found is None:
        raise ValueError("card must be given for a model that does not carry one as its attribute card")
    if not isinstance(found, kind):
        raise TypeError(f"card must be a {kind.__module__}.{kind.__name__}, got {type(found).__name__}")
    return found


def load_fitting(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Give a network, built on the meta device, the file's tensors in its own dtypes and in memory of their own.

    Raises:
        ValueError: tensors that are missing, unknown, of another shape or not floating where the network's are.
    """
    expected = model.state_dict()
    for what, keys in (("lacks", expected.keys() - state.keys()), ("has unknown", state.keys() - expected.keys())):
        if keys:
            raise ValueError(f"{path} {what} {len(keys)} tensors, {min(keys)!r} first: it does not fit its card")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise ValueError(f"{path}: {key} must be {list(expected[key].shape)}, got {list(value.shape)}")
        if expected[key].is_floating_point() and not value.is_floating_point():
            raise ValueError(f"{path}: {key} must be floating-point, got {describe(value)}")
    # Copies: a tensor that stays mapped would change, or kill the process, with the file.
    fitting = {key: value.to(expected[key].dtype, copy=True) for key, value in state.items()}
    give_tensors(model, fitting)


def give_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the tensors of a state dict that fits in the places of the network's own.

    Unlike `load_state_dict` it does not ask the modules, whose loaders code of others may have replaced.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        for key, parameter in module._parameters.items():
            if parameter is not None and prefix + key in state:
                module._parameters[key] = nn.Parameter(state[prefix + key], parameter.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None and prefix + key in state:
                module._buffers[key] = state[prefix + key]


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped.

    Raises:
        ValueError: not a safetensors file.
    """
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file.

    Raises:
        ValueError: not a safetensors file.
        ImportError: safetensors is not installed.
    """
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    package = _safetensors()
    try:
        with package.safe_open(path, "pt") as file:
            yield file
    except (package.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _safetensors() -> Any:
    """The package, loaded where it is used: networks can be built and run without it."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("weights files need safetensors: pip install safetensors") from error
    return safetensors


def numbered_classes(n: int) -> tuple[str, ...]:
    """Names of classes that nobody named."""
    return tuple(f"class {i}" for i in range(n))
