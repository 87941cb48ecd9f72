"""Published checkpoints of temporal-shift networks as `TSM`, and translation of their keys."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common_kernels.checks import describe
from video.checkpoints.filename import Said, read_name
from video.checkpoints.infer import backbone_of, place_of, shifted_modules
from video.checkpoints.layouts import LAYOUTS, Layout, from_ours, to_ours
from video.checkpoints.read import read_state_dict, state_dict_of
from video.models import TSM

# 2D networks, into which a shift can be inserted before training.
IMAGE_LAYOUTS = ("torchvision", "timm")
# Projects whose shifted networks all shift in both directions.
OFFLINE_LAYOUTS = ("mit", "mmaction2")
ONLINE_SEGMENTS = 8


def convert(state_dict: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """The same tensors under the keys of another project.

    Args:
        state_dict: of a TSM, or as mit-han-lab, mmaction2, torchvision or timm spell it; which, its keys tell.
        to: "trisparse" (the keys of `TSM`), "mit" (training code, with `module.`), "mit-online" (the live MobileNetV2,
            from one that shifts in direction "past"),
            "mmaction2" (version 1), "torchvision" or "timm" (single frames: the keys no longer tell of the shift).

    Raises:
        ValueError: a layout that is not known or has no keys for this network.
    """
    if to not in LAYOUTS:
        raise ValueError(f"to must be one of {', '.join(LAYOUTS)}, got {to!r}")
    ours, layout = to_ours(state_dict_of(state_dict, "state_dict"))
    offline = layout.name in OFFLINE_LAYOUTS and place_of(ours) is not None
    if (layout.name == "mit-online" and to in OFFLINE_LAYOUTS) or (to == "mit-online" and offline):
        raise ValueError(
            f"to must not be {to!r} for a network in the layout {layout.name!r}: live networks take channels from the "
            "frame before that offline ones take from the next one"
        )
    if layout.name == "mit-online":
        ours = _marked_shifted(ours)
    return from_ours(ours, to)


def load_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any],
    num_segments: int | None = None,
    fold_div: int | None = None,
    place: str | None = None,
    direction: str | None = None,
    shift: bool | None = None,
    num_classes: int | None = None,
    dropout: float = 0.5,
    sha256: str | None = None,
) -> TSM:
    """A TSM from a checkpoint of mit-han-lab, mmaction2, torchvision or timm, in evaluation mode.

    Network, classes, place of the shift and whether there is one are read from keys and shapes; frames per clip and
    fold_div from the name of the file, as the projects form it. An argument wins over the name of the file; what
    contradicts the tensors is an error. Weights without shift make a network of single frames averaged over the clip.

    Args:
        source: a file (see `read_state_dict`), or what torch.load made of one.
        num_segments: needed for a shifted network where the name does not tell; otherwise 1.
        shift: True inserts shifts into the weights of a 2D network, to be trained; otherwise it is only checked.
        sha256: the file's digest, eight digits at least.

    Raises:
        ValueError: a file that is no such checkpoint, an argument that contradicts it, or an offline network (shifts in
            both directions) asked for as a live one.
        OSError: the file cannot be read.
    """
    if isinstance(source, Mapping):
        if sha256 is not None:
            raise ValueError("sha256 must be left out where source is no file")
        name, said = "source", Said()
        state = state_dict_of(source, name)
    else:
        name, said = str(source), read_name(Path(source).name)
        state = read_state_dict(source, sha256)
    try:
        ours, layout = to_ours(state)
        backbone, backbone_arguments = backbone_of(ours, layout.family)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    online = layout.name == "mit-online"
    if online and not _is_live(ours, said, direction, shift):
        online, layout = False, Layout("torchvision", layout.family)  # an ImageNet network in the same spelling
    found_place = "blockres" if online else place_of(ours)
    shift = _decide_shift(name, layout, found_place, said, shift)
    direction = _decide_direction(name, layout, online, shift, direction)
    if found_place is not None:
        for what, value in (("the argument", place), ("its name", said.place)):
            if value is not None and value != found_place:
                raise ValueError(f"{name}: place is {value!r} by {what}, but {found_place!r} by its keys")
    rows = ours["new_fc.weight"].shape[0] if "new_fc.weight" in ours and ours["new_fc.weight"].ndim == 2 else None
    if rows is None:
        raise ValueError(f"{name}: it lacks a classifier [classes, features]")
    if num_classes not in (None, rows):
        raise ValueError(f"{name}: num_classes={num_classes}, but its classifier has {rows} rows")
    segments = num_segments if num_segments is not None else said.num_segments
    if segments is None:
        if shift and not online:
            raise ValueError(f"{name}: weights do not hold the number of frames of a clip: give num_segments")
        segments = ONLINE_SEGMENTS if online else 1
    arguments: dict[str, Any] = dict(
        backbone=backbone,
        backbone_arguments=backbone_arguments,
        num_classes=rows,
        num_segments=segments,
        fold_div=fold_div if fold_div is not None else said.fold_div or 8,
        direction=direction,
        place=found_place or place or "blockres",
        dropout=dropout,
        shift=shift,
    )
    try:
        with torch.device("meta"):  # without memory, until the shapes are known to fit
            model = TSM(**arguments)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: no network can be built from it: {error}") from error
    if (shift and found_place is None) or online:
        ours = _marked_shifted(ours, model)
    model.load_state_dict(_fitting(name, ours, model), assign=True)
    return model.eval()


def _is_live(ours: Mapping[str, Tensor], said: Said, direction: str | None, shift: bool | None) -> bool:
    """Whether weights in the spelling of the live network are its: ImageNet ones are spelt alike."""
    if shift is False:
        return False
    head = ours.get("new_fc.weight")
    imagenet = head is not None and head.shape[:1] == (1000,)
    return "past" in (said.direction, direction) or not imagenet


def _decide_shift(name: str, layout: Layout, found: str | None, said: Said, shift: bool | None) -> bool:
    """Whether the network has shifts: as its keys say. Only a 2D network leaves the choice."""
    if layout.name in IMAGE_LAYOUTS:
        return bool(shift)
    has = found is not None
    if not has and said.shift:
        raise ValueError(f"{name}: its name says that it is shifted, but none of its keys is ('.net.')")
    if shift is not None and shift != has:
        state = "shifted" if has else "not shifted (no key has '.net.'): a TSN, whose frames do not see each other"
        raise ValueError(f"{name}: shift={shift}, but its weights are {state}")
    if has and said.shift is False:
        raise ValueError(f"{name}: its name says that it is not shifted, but its keys are ('.net.')")
    if not has and shift is None:
        warnings.warn(f"{name}: no key is shifted: a TSN, whose frames do not see each other", stacklevel=3)
    return has


def _decide_direction(name: str, layout: Layout, online: bool, shift: bool, direction: str | None) -> str:
    """What the weights were trained with. Keys do not hold it, but the projects each know one direction only."""
    if not shift or layout.name in IMAGE_LAYOUTS:
        return direction or "both"
    if online:
        if direction == "both":
            raise ValueError(f"{name}: a live network (past frames only) cannot be loaded with direction='both'")
        return "past"
    if direction == "past":
        raise ValueError(
            f"{name}: an offline network, whose shifts go in both directions, cannot run live: the channels that a "
            "live network takes from the frame before were trained to come from the next one. (Weights that were "
            "trained past-only under these keys: "
            "TSM(..., direction='past').load_state_dict(convert(state, to='trisparse')).)"
        )
    return "both"


def _marked_shifted(ours: Mapping[str, Tensor], model: TSM | None = None) -> dict[str, Tensor]:
    """Keys of weights that do not tell of shifts, as the shifted network has them (the live MobileNetV2 by default)."""
    if model is None:
        backbone, arguments = backbone_of(ours, "mobilenet_v2")
        with torch.device("meta"):
            model = TSM(backbone, num_classes=1, direction="past", backbone_arguments=arguments)
    renamed = {key.replace(".net.", "."): key for key in model.state_dict()}
    return {renamed.get(key, key): value for key, value in ours.items()}


def _fitting(name: str, ours: Mapping[str, Tensor], model: TSM) -> dict[str, Tensor]:
    """The tensors in the network's dtypes and of their own memory, if they are its tensors."""
    expected = model.state_dict()
    found, wanted = shifted_modules(ours), shifted_modules(expected)
    if found != wanted:
        raise ValueError(
            f"{name}: {len(found)} of its modules are shifted, this network has {len(wanted)} shifts: "
            f"{', '.join(sorted(found ^ wanted)[:3])} differ"
        )
    # Old files were written before norms counted their batches.
    counters = {key: torch.zeros((), dtype=torch.int64) for key in expected if key.endswith(".num_batches_tracked")}
    state = {**counters, **ours}
    for what, keys in (("lacks", expected.keys() - state.keys()), ("has unknown", state.keys() - expected.keys())):
        if keys:
            raise ValueError(f"{name} {what} {len(keys)} tensors, {min(keys)!r} first")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise ValueError(f"{name}: {key} must be {list(expected[key].shape)}, got {list(value.shape)}")
        if expected[key].is_floating_point() and not value.is_floating_point():
            raise ValueError(f"{name}: {key} must be floating-point, got {describe(value)}")
    return {key: state[key].detach().to("cpu", expected[key].dtype, copy=True) for key in expected}
