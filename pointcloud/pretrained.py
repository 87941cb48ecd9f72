"""Networks with weights: those in this package, and files in the same format."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common_models import cards
from common_models.names import did_you_mean
from common_models.pretrained import (
    check_saveable,
    list_weights,
    load_fitting,
    locate,
    read_card,
    read_state,
    refuse_download,
    round_like_saved,
    write_weights,
)
from pointcloud.models import MinkUNet

__all__ = ["ModelCard", "list_pretrained", "load_pretrained", "round_like_saved", "save_pretrained"]

WEIGHTS = Path(__file__).parent / "weights"
ARCHITECTURES = {"MinkUNet": MinkUNet}
_DOMAIN = "pointcloud"


@dataclass(frozen=True, kw_only=True)
class ModelCard(cards.ModelCard):
    """What a weights file says of itself.

    Attributes:
        arguments: arguments of the network class.
        class_names: meaning of the logits.
        voxel_size: metres.
    """

    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    voxel_size: float

    def build(self) -> nn.Module:
        """The network without its weights.

        Raises:
            ValueError: an unknown architecture.
        """
        if self.architecture not in ARCHITECTURES:
            hint = did_you_mean(str(self.architecture), ARCHITECTURES)
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}{hint}")
        return ARCHITECTURES[self.architecture](**self.arguments)


def list_pretrained() -> list[str]:
    """Names that `load_pretrained` knows."""
    return list_weights(WEIGHTS)


def load_pretrained(name_or_path: str | os.PathLike[str], *, download: bool = False) -> nn.Module:
    """A network with its weights, in evaluation mode, its ModelCard as attribute `card`.

    Args:
        name_or_path: a name of `list_pretrained()`, or a `.safetensors` file written by `save_pretrained`.
        download: must be False: no network of this package is fetched from elsewhere.

    Raises:
        ValueError: an unknown name, or a file that is not such a file or whose tensors do not fit its card.

    Example:
        >>> import pointcloud
        >>> pointcloud.load_pretrained("minkunet14-streets").card.class_names[:2]
        ('road', 'sidewalk')
    """
    refuse_download(download)
    path = locate(name_or_path, WEIGHTS)
    card = _read_card(path)
    try:
        # Without memory: what the card asks for must be what the file holds before any of it is allocated.
        with torch.device("meta"):
            model = card.build()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: no {card.architecture} can be built from its card: {error}") from error
    load_fitting(path, read_state(path), model)
    model.card = card  # type: ignore[assignment]
    return model.eval()


def _read_card(path: Path) -> ModelCard:
    stated = read_card(path, _DOMAIN)
    if stated is None:
        raise ValueError(f"{path} holds no model card: expected a file written by save_pretrained")
    if "architecture" in stated and "arguments" not in stated:  # `trisparse convert` wrote it
        raise ValueError(
            f"{path} holds the weights of {stated['architecture']}, a network that is not in this package: build it of "
            "this package's layers and give it what safetensors.torch.load_file reads"
        )
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


def save_pretrained(model: nn.Module, path: str | os.PathLike[str], card: ModelCard | None = None) -> None:
    """Write weights and card; matrices in fp16, everything else as it is. The file appears whole or not at all.

    Args:
        card: by default the model's attribute `card`, as `load_pretrained` gives it.

    Raises:
        TypeError: a card that is no ModelCard, or that is not made of JSON's values.
        ValueError: an accelerated network, no card at all, tensors that are not those of the network that the card
            builds, or a weight beyond the range of fp16.
    """
    check_saveable(model)
    card = getattr(model, "card", None) if card is None else card
    if card is None:
        raise ValueError("card must be given for a model without the attribute `card`, which load_pretrained sets")
    if not isinstance(card, ModelCard):
        raise TypeError(f"card must be a pointcloud.ModelCard, got {type(card).__name__}")
    state = model.state_dict()
    with torch.device("meta"):
        expected = card.build().state_dict()
    for key in [*expected, *state]:
        if key not in expected or key not in state or expected[key].shape != state[key].shape:
            of_card, of_model = (
                list(tensors[key].shape) if key in tensors else "missing" for tensors in (expected, state)
            )
            raise ValueError(
                f"model must have the tensors of the {card.architecture} that its card builds, got {key} {of_model} "
                f"instead of {of_card}: the file could not be read again"
            )
    write_weights(path, state, asdict(card), _DOMAIN)
