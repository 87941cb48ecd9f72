"""Networks with weights: those in this package, and files in the same format."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

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
        ValueError: an unknown name, or a file that is not such a file.
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
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if "card" not in metadata:
        raise ValueError(f"{path} holds no model card: expected a file written by pointcloud.pretrained.save_pretrained")
    fields = json.loads(metadata["card"])
    card = ModelCard(**{**fields, "class_names": tuple(fields["class_names"])})
    model = card.build()
    expected = model.state_dict()
    model.load_state_dict({key: value.to(expected[key].dtype) if key in expected else value for key, value in state.items()})
    model.card = card  # type: ignore[assignment]
    return model.eval()


def save_pretrained(model: nn.Module, card: ModelCard, path: str | os.PathLike[str]) -> None:
    """Write weights and card; matrices in fp16, everything else as it is. The file appears whole or not at all."""
    state = {
        key: (value.half() if value.ndim > 1 and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
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
