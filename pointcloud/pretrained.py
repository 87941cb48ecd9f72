"""Networks with weights: those in this package, and files in the same format."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common_models import cards, pretrained
from pointcloud.models import MinkUNet

DOMAIN = "pointcloud"
WEIGHTS = Path(__file__).parent / "weights"
ARCHITECTURES: dict[str, type[nn.Module]] = {"MinkUNet": MinkUNet}


@dataclass(frozen=True, kw_only=True)
class ModelCard(cards.ModelCard):
    """What a weights file says of itself.

    Attributes:
        arguments: of the network class.
        class_names: meaning of the logits.
        voxel_size: metres.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...]
    voxel_size: float

    def build(self) -> nn.Module:
        """The network without its weights."""
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        return ARCHITECTURES[self.architecture](**self.arguments)


def list_pretrained() -> list[str]:
    """Names that `load_pretrained` knows."""
    return pretrained.list_weights(WEIGHTS)


def load_pretrained(name_or_path: str | os.PathLike[str], *, download: bool = False) -> nn.Module:
    """A network with its weights, in evaluation mode, its ModelCard as attribute `card`.

    Args:
        name_or_path: a name of `list_pretrained()`, or a `.safetensors` file written by `save_pretrained`.
        download: must be False: all networks of this package are files.

    Raises:
        ValueError: an unknown name, or a file that is not such a file or whose tensors do not fit its card.
        ImportError: safetensors is not installed.
    """
    pretrained.refuse_download(download)
    path = pretrained.locate(name_or_path, WEIGHTS)
    stated = pretrained.read_card(path, DOMAIN)
    if stated is None:
        raise ValueError(f"{path} holds no model card: expected a file written by save_pretrained")
    card = _card(path, stated)
    try:
        # Without memory: what the card asks for must be what the file holds before any of it is allocated.
        with torch.device("meta"):
            model = card.build()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: no {card.architecture} can be built from its card: {error}") from error
    pretrained.load_fitting(path, pretrained.read_state(path), model)
    model.card = card  # type: ignore[assignment]
    return model.eval()


def save_pretrained(model: nn.Module, path: str | os.PathLike[str], card: ModelCard | None = None) -> None:
    """Write weights and card; matrices in fp16, everything else as it is. The file appears whole or not at all.

    Args:
        card: by default the one that the network carries as attribute `card`.

    Raises:
        TypeError: a card that is not a ModelCard of this package.
        ValueError: an accelerated network, one without a card, or a weight beyond the range of fp16.
        ImportError: safetensors is not installed.
    """
    pretrained.check_saveable(model)
    card = pretrained.card_of(model, card, ModelCard)
    pretrained.write_weights(path, model.state_dict(), asdict(card), DOMAIN)


def _card(path: Path, stated: dict[str, Any]) -> ModelCard:
    try:
        card = ModelCard(**{**stated, "class_names": tuple(stated["class_names"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: its model card cannot be read: {error}") from error
    texts = (card.description, card.architecture, *card.class_names)
    if not all(isinstance(text, str) for text in texts) or not isinstance(card.arguments, dict):
        raise ValueError(f"{path}: its model card cannot be read: a field is of another type than ModelCard's")
    if isinstance(card.voxel_size, bool) or not isinstance(card.voxel_size, (int, float)) or not card.voxel_size > 0:
        raise ValueError(f"{path}: voxel_size in its card must be metres above 0, got {card.voxel_size!r}")
    return card
