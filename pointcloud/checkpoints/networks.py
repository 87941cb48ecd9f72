"""Networks of other projects that exist here: their keys, and the arguments that their tensors tell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pointcloud.models.minkunet import BLOCKS, CHANNELS

STEM_TAPS = 27


class NotThisNetworkError(ValueError):
    """A state dict in the spelling of a MinkUNet is of another network of that project."""


@dataclass(frozen=True)
class Spelling:
    """How a project spells the keys of a MinkUNet.

    Attributes:
        project: its name.
        source: the library of its layers; None where keys do not tell the version of spconv.
        marks: pattern of a key that this spelling alone has.
        places: patterns of where a key stands, each with our prefix; the rest is spelt as `_within_block` knows.
        ignored: keys that the network does not read.
    """

    project: str
    source: str | None
    marks: str
    places: tuple[tuple[str, Callable[[re.Match[str]], str]], ...]
    ignored: str


def _number(match: re.Match[str], group: int, shift: int = 0) -> int:
    return int(match[group]) + shift


_SPVNAS = (
    (r"stem\.(\d)\.", lambda m: f"stem.{m[1]}."),
    (r"stage([1-4])\.0\.net\.", lambda m: f"stages.{_number(m, 1, -1)}.down."),
    (r"stage([1-4])\.([1-9]\d*)\.", lambda m: f"stages.{_number(m, 1, -1)}.blocks.{_number(m, 2, -1)}."),
    (r"up([1-4])\.0\.net\.", lambda m: f"ups.{_number(m, 1, -1)}.up."),
    (r"up([1-4])\.1\.(\d+)\.", lambda m: f"ups.{_number(m, 1, -1)}.blocks.{m[2]}."),
    (r"classifier\.0\.", lambda m: "classifier."),
)
_MMDET3D = (
    (r"backbone\.conv_input\.([01])\.(?:net\.)?([01])\.", lambda m: f"stem.{3 * int(m[1]) + int(m[2])}."),
    (r"backbone\.encoder\.([0-3])\.0\.(?:net\.)?", lambda m: f"stages.{m[1]}.down."),
    (r"backbone\.encoder\.([0-3])\.([1-9]\d*)\.", lambda m: f"stages.{m[1]}.blocks.{_number(m, 2, -1)}."),
    (r"backbone\.decoder\.([0-3])\.0\.(?:net\.)?", lambda m: f"ups.{m[1]}.up."),
    (r"backbone\.decoder\.([0-3])\.1\.(\d+)\.", lambda m: f"ups.{m[1]}.blocks.{m[2]}."),
    (r"decode_head\.conv_seg\.", lambda m: "classifier."),
)
_TRAINING_ONLY = r"decode_head\.loss|data_preprocessor\."
SPELLINGS = (
    Spelling("spvnas", "torchsparse", r"stage1\.1\.net\.0\.kernel", _SPVNAS, r"point_transforms\."),
    Spelling("mmdetection3d", "minkowski", r"backbone\.encoder\.0\.0\.net\.1\.bn\.", _MMDET3D, _TRAINING_ONLY),
    Spelling("mmdetection3d", "torchsparse", r"backbone\.encoder\.0\.1\.net\.0\.kernel", _MMDET3D, _TRAINING_ONLY),
    Spelling("mmdetection3d", None, r"backbone\.encoder\.0\.1\.conv1\.weight", _MMDET3D, _TRAINING_ONLY),
)
# Names in a residual block, ours after theirs.
_WITHIN = (
    (r"conv1\.", "net.0."),
    (r"(?:bn1|norm1\.bn|norm1)\.", "net.1."),
    (r"conv2\.", "net.3."),
    (r"(?:bn2|norm2\.bn|norm2)\.", "net.4."),
    (r"downsample\.net\.", "downsample."),
)


def spelling_of(keys: Mapping[str, Tensor]) -> Spelling | None:
    """How the keys of a MinkUNet are spelt, None for other networks."""
    return next((s for s in SPELLINGS if any(re.match(s.marks, key) for key in keys)), None)


def our_keys(tensors: Mapping[str, Tensor], spelling: Spelling) -> dict[str, str]:
    """Our key for each of theirs that the network reads.

    Raises:
        NotThisNetworkError: keys of another network in the same spelling.
    """
    renamed, strange = {}, []
    for key in tensors:
        ours = _our_key(key, spelling)
        if ours is not None:
            renamed[key] = ours
        elif not re.match(spelling.ignored, key):
            strange.append(key)
    if strange:
        raise NotThisNetworkError(
            f"{len(strange)} keys are not those of a MinkUNet of {spelling.project}, {strange[0]!r} first"
        )
    if spelling.project == "spvnas" and _uses_points(tensors):
        raise NotThisNetworkError(
            "it is an SPVCNN, whose point branch (point_transforms) was trained; of spvnas' networks only MinkUNet is "
            "here"
        )
    return renamed


def _our_key(key: str, spelling: Spelling) -> str | None:
    for pattern, place in spelling.places:
        match = re.match(pattern, key)
        if match is None:
            continue
        rest = key[match.end() :]
        for theirs, ours in _WITHIN:
            rest = re.sub(rf"^{theirs}", ours, rest)
        return place(match) + re.sub(r"(^|\.)bn\.", r"\1", rest)
    return None


def _uses_points(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the point branch, which spvnas' MinkUNet has but never runs, ever saw a batch."""
    means = [value for key, value in tensors.items() if re.match(r"point_transforms\..*running_mean$", key)]
    return any(bool(mean.any()) for mean in means)


def minkunet_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `MinkUNet` for a state dict in our keys, whatever the layout of its weights.

    Raises:
        NotThisNetworkError: a depth or a width that MinkUNet has not.
    """
    norms = ["stem.1", *(f"stages.{i}.blocks.0.net.1" for i in range(4)), *(f"ups.{i}.up.1" for i in range(4))]
    lacking = [key for key in (*(f"{norm}.running_mean" for norm in norms), "classifier.weight") if key not in tensors]
    if lacking:
        raise NotThisNetworkError(f"it lacks what in a MinkUNet is {lacking[0]}")
    channels = tuple(len(tensors[f"{norm}.running_mean"]) for norm in norms)
    stem = next((tensors[key] for key in ("stem.0.kernel", "stem.0.weight") if key in tensors), None)
    blocks = tuple(_count(tensors, f"{side}.{i}.blocks") for side in ("stages", "ups") for i in range(4))
    depth = next((depth for depth, counts in BLOCKS.items() if counts == blocks), None)
    if depth is None or stem is None:
        raise NotThisNetworkError(f"residual blocks per stage must be those of depth 14, 18 or 34, got {list(blocks)}")
    return {
        "in_channels": stem.numel() // (STEM_TAPS * channels[0]),
        "num_classes": len(tensors["classifier.weight"]),
        "width": width_of(channels),
        "depth": depth,
    }


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    return len({key[len(name) + 1 :].split(".")[0] for key in tensors if key.startswith(f"{name}.")})


def width_of(channels: tuple[int, ...]) -> float:
    """The shortest decimal whose multiples of MinkUNet's channels, rounded down, are these.

    Raises:
        NotThisNetworkError: there is none.
    """
    low = max(c / unit for c, unit in zip(channels, CHANNELS))
    for digits in range(7):
        width = math.ceil(low * 10**digits - 1e-9) / 10**digits
        if tuple(int(width * unit) for unit in CHANNELS) == channels:
            return width
    raise NotThisNetworkError(f"channels must be {list(CHANNELS)} times a width, got {list(channels)}")
