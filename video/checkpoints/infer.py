"""The arguments of a TSM, from the keys and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from video.models.mobilenet_v2 import STAGES, round_channels
from video.models.resnet import DEPTHS


def backbone_of(state: Mapping[str, Tensor], family: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments (of `models.create`) of the network of single frames with these weights, keys as TSM's.

    Raises:
        ValueError: tensors are missing, or are those of no such network.
    """
    plain = {key.replace(".net.", "."): tuple(value.shape) for key, value in state.items()}
    try:
        return _resnet(plain) if family == "resnet" else _mobilenet_v2(plain)
    except KeyError as error:
        raise ValueError(f"the state dict lacks {error}") from None


def _resnet(shapes: dict[str, tuple[int, ...]]) -> tuple[str, dict[str, Any]]:
    blocks: dict[int, set[int]] = {}
    for key in shapes:
        if match := re.match(r"base_model\.layer(\d)\.(\d+)\.", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    layers = tuple(len(blocks.get(i, ())) for i in (1, 2, 3, 4))
    for i, n_blocks in enumerate(layers):
        if not n_blocks or blocks[i + 1] != set(range(n_blocks)):
            raise ValueError(f"the state dict lacks blocks of layer{i + 1}, it has {sorted(blocks.get(i + 1, ()))}")
    kind = "bottleneck" if "base_model.layer1.0.conv3.weight" in shapes else "basic"
    depth = next((depth for depth, what in DEPTHS.items() if what == (kind, layers)), None)
    arguments: dict[str, Any] = {}
    if depth is None:
        depth = 50 if kind == "bottleneck" else 18
        arguments["layers"] = layers
    width, in_channels = _four("base_model.conv1.weight", shapes)[:2]
    if width != 64:
        arguments["width"] = width
    if in_channels != 3:
        arguments["in_channels"] = in_channels
    if kind == "bottleneck":
        inner, per_group = _four("base_model.layer1.0.conv2.weight", shapes)[:2]
        if per_group > inner:
            raise ValueError(f"base_model.layer1.0.conv2.weight must not widen, got {[inner, per_group]}")
        groups = inner // per_group
        if (groups, inner) != (1, width):
            arguments["groups"] = groups
            arguments["group_width"] = max(1, 64 * inner // (groups * width))
    return f"resnet{depth}", arguments


def _mobilenet_v2(shapes: dict[str, tuple[int, ...]]) -> tuple[str, dict[str, Any]]:
    stem, in_channels = _four("base_model.features.0.0.weight", shapes)[:2]
    found = [stem]
    for feature in (1, 2, 4, 7, 11, 14, 17):
        layer = "1" if feature == 1 else "2"
        found.append(_four(f"base_model.features.{feature}.conv.{layer}.weight", shapes)[0])
    found.append(_four("base_model.features.18.0.weight", shapes)[0])
    # Several factors round to the same channels: the roundest of them is as good as any.
    factors = sorted(range(1, 401), key=lambda percent: (percent % 25 > 0, percent % 5 > 0, abs(percent - 100)))
    for percent in factors:
        width = percent / 100
        channels = [round_channels(out * width) for _, out, _, _ in STAGES]
        if [round_channels(32 * width), *channels, round_channels(1280 * max(1.0, width))] == found:
            break
    else:
        raise ValueError(f"no width factor gives MobileNetV2 these channels: {found}")
    arguments: dict[str, Any] = {} if width == 1.0 else {"width": width}
    if in_channels != 3:
        arguments["in_channels"] = in_channels
    return "mobilenet_v2", {**arguments, "dropout": 0.0}


def _four(key: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a convolution's weight."""
    shape = shapes[key]
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{key} must be [out, in, kernel, kernel], got {list(shape)}")
    return shape


def place_of(state: Mapping[str, Tensor]) -> str | None:
    """Where the keys say that the shift is; None: nowhere."""
    if any(re.match(r"base_model\.(layer\d\.\d+|features\.\d+)\.net\.", key) for key in state):
        return "block"
    return "blockres" if any(".net." in key for key in state) else None


def shifted_modules(keys: Iterable[str]) -> set[str]:
    """Names of the modules of `base_model` that the keys say are shifted."""
    return {key.split(".net.")[0].removeprefix("base_model.") for key in keys if ".net." in key}
