"""Networks with weights: those in this package, and files in the same format."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.models import MinkUNet

WEIGHTS = Path(__file__).parent / "weights"
ARCHITECTURES = {"MinkUNet": MinkUNet}


@dataclass(frozen=True)
class ModelCard:
    """What a weights file says of itself.

    Attributes:
        description: what it is for, in a sentence.
        architecture: name of the network class.
        arguments: its arguments.
        class_names: meaning of the logits.
        voxel_size: metres.
        recipe: how it was trained.
        results: what was measured on held-out data.
    """

    description: str
    architecture: str
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    voxel_size: float
    recipe: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network without its weights."""
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        return ARCHITECTURES[self.architecture](**self.arguments)


def list_pretrained() -> list[str]:
    """Names that `load_pretrained` knows."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load_pretrained(name_or_path: str | os.PathLike[str]) -> nn.Module:
    """A network with its weights, in evaluation mode, its ModelCard as attribute `card`.

    Args:
        name_or_path: a name of `list_pretrained()`, or a `.safetensors` file written by `save_pretrained`.

    Raises:
        ValueError: an unknown name, or a file that is not such a file or whose tensors do not fit its card.
        ImportError: safetensors is not installed.
    """
    path = WEIGHTS / f"{name_or_path}.safetensors"
    if str(name_or_path) not in list_pretrained():
        path = Path(name_or_path)
        if not path.is_file():
            close = difflib.get_close_matches(str(name_or_path), list_pretrained())
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(
                f"name_or_path must be a file or one of {', '.join(list_pretrained()) or '(none)'}, "
                f"got {str(name_or_path)!r}{hint}"
            )
    _require_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copies: a tensor that stays mapped would change, or kill the process, with the file.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    card = _read_card(path, metadata)
    try:
        # Without memory: what the card asks for must be what the file holds before any of it is allocated.
        with torch.device("meta"):
            model = card.build()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: no {card.architecture} can be built from its card: {error}") from error
    model.load_state_dict(_fitting(path, state, model), assign=True)
    model.card = card  # type: ignore[assignment]
    return model.eval()


def _require_safetensors() -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError("weights files need safetensors: pip install safetensors")


def _read_card(path: Path, metadata: dict[str, str]) -> ModelCard:
    if "card" not in metadata:
        raise ValueError(f"{path} holds no model card: expected a file written by save_pretrained")
    try:
        stated = json.loads(metadata["card"])
        card = ModelCard(**{**stated, "class_names": tuple(stated["class_names"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: its model card cannot be read: {error}") from error
    texts = (card.description, card.architecture, *card.class_names)
    if not all(isinstance(text, str) for text in texts) or not isinstance(card.arguments, dict):
        raise ValueError(f"{path}: its model card cannot be read: a field is of another type than ModelCard's")
    if isinstance(card.voxel_size, bool) or not isinstance(card.voxel_size, (int, float)) or not card.voxel_size > 0:
        raise ValueError(f"{path}: voxel_size in its card must be metres above 0, got {card.voxel_size!r}")
    return card


def _fitting(path: Path, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The file's tensors in the network's dtypes, if they are its tensors."""
    expected = model.state_dict()
    for what, keys in (("lacks", expected.keys() - state.keys()), ("has unknown", state.keys() - expected.keys())):
        if keys:
            raise ValueError(f"{path} {what} {len(keys)} tensors, {min(keys)!r} first: it does not fit its card")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise ValueError(f"{path}: {key} must be {list(expected[key].shape)}, got {list(value.shape)}")
    return {key: value.to(expected[key].dtype) for key, value in state.items()}


def save_pretrained(model: nn.Module, card: ModelCard, path: str | os.PathLike[str]) -> None:
    """Write weights and card; matrices in fp16, everything else as it is. The file appears whole or not at all.

    Raises:
        ValueError: a weight beyond the range of fp16.
        ImportError: safetensors is not installed.
    """
    _require_safetensors()
    from safetensors.torch import save_file

    state = {}
    for key, value in model.state_dict().items():
        value = value.detach().cpu()
        if value.ndim > 1 and value.is_floating_point():
            limit = torch.finfo(torch.float16).max
            if value.numel() and not float(value.abs().max()) <= limit:
                raise ValueError(f"{key} must be finite and within ±{limit:g}, the range of fp16, to be saved")
            value = value.half()
        state[key] = value.contiguous()
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        save_file(state, partial, metadata={"card": json.dumps(asdict(card))})
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def round_like_saved(model: nn.Module) -> None:
    """Round the parameters as `save_pretrained` does, so that what is measured is what is shipped."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half().to(parameter.dtype))
