"""Keys of state dicts in each project's spelling, translated by way of our own (torchvision's names within TSM)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

PARAMETER = r"(?P<p>weight|bias|running_mean|running_var|num_batches_tracked)"

# MobileNetV2's features in the stages of mmaction2 ("layer") and timm ("blocks"), which count from 1 and from 0.
STAGE_SIZES = (1, 2, 3, 4, 3, 3, 1)
STAGE_OF = {
    feature: (stage, feature - first)
    for stage, (first, size) in enumerate(zip((1, 2, 4, 7, 11, 14, 17), STAGE_SIZES))
    for feature in range(first, first + size)
}
FEATURE_OF = {place: feature for feature, place in STAGE_OF.items()}
# The layers of a MobileNetV2 block, without expansion and with it: ours, mit-han-lab's, mmaction2's, timm's.
PLAIN = (("0.0", "0", "0.conv", "conv_dw"), ("0.1", "1", "0.bn", "bn1"), ("1", "3", "1.conv", "conv_pw"),
         ("2", "4", "1.bn", "bn2"))  # fmt: skip
EXPANDED = (("0.0", "0", "0.conv", "conv_pw"), ("0.1", "1", "0.bn", "bn1"), ("1.0", "3", "1.conv", "conv_dw"),
            ("1.1", "4", "1.bn", "bn2"), ("2", "6", "2.conv", "conv_pwl"), ("3", "7", "2.bn", "bn3"))  # fmt: skip
LAYOUTS = ("trisparse", "mit", "mit-online", "mmaction2", "torchvision", "timm")


@dataclass(frozen=True)
class Layout:
    """How keys are spelt.

    Attributes:
        name: one of LAYOUTS.
        family: "resnet" or "mobilenet_v2".
    """

    name: str
    family: str


def detect(keys: Iterable[str]) -> Layout:
    """The layout of keys without `module.`.

    Raises:
        ValueError: none of LAYOUTS, or non-local blocks, which are not supported.
    """
    keys = list(keys)
    present = set(keys)
    if nonlocal_keys := [key for key in keys if re.search(r"\.(nl|non_local_block)\.", key)]:
        raise ValueError(
            f"networks with non-local blocks are not supported: {len(nonlocal_keys)} keys, {nonlocal_keys[0]!r} first"
        )

    def any_of(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in keys)

    if any_of(r"backbone\.layer\d+\.\d+\.conv\.\d"):
        return Layout("mmaction2", "mobilenet_v2")
    if any_of(r"backbone\.layer\d+\.\d+\.(net\.)?conv1\.conv\."):
        return Layout("mmaction2", "resnet")
    if any_of(r"base_model\.layer\d+\.\d+\.(net\.)?conv1\."):
        return Layout("mit", "resnet")
    if any_of(r"base_model\.features\.\d+\.(net\.)?conv\.0\.0\."):
        return Layout("trisparse", "mobilenet_v2")
    if any_of(r"base_model\.features\.\d+\.(net\.)?conv\.0\."):
        return Layout("mit", "mobilenet_v2")
    if any_of(r"layer\d+\.\d+\.conv1\.weight"):
        return Layout("torchvision", "resnet")
    if any_of(r"features\.\d+\.conv\.0\.0\."):
        return Layout("torchvision", "mobilenet_v2")
    if any_of(r"features\.\d+\.conv\.0\.weight"):
        return Layout("mit-online", "mobilenet_v2")
    if {"conv_stem.weight", "conv_head.weight", "blocks.0.0.conv_dw.weight"} <= present:
        return Layout("timm", "mobilenet_v2")
    first = ", ".join(keys[:3])
    raise ValueError(
        "keys must be those of a ResNet or MobileNetV2 as mit-han-lab, mmaction2, torchvision or timm spell them, "
        f"got {len(keys)} keys like {first}"
    )


def without_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the `module.` that DataParallel puts before every key."""
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def to_ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Layout]:
    """A state dict of any layout with the keys of `TSM`, and the layout it had.

    Raises:
        ValueError: a layout that is not known, or a key that does not belong to it.
    """
    state = without_module(state)
    layout = detect(state)
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        new = read_key(key, layout)
        if new is None:
            raise ValueError(f"key {key!r} does not belong to a {layout.family} as {layout.name} spells it")
        if new in ours:
            raise ValueError(f"key {key!r} says the same as another: both are {new!r}")
        ours[new] = value
    return ours, layout


def from_ours(state: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """A state dict with the keys of `TSM` in the spelling of a layout.

    Raises:
        ValueError: what this layout has no keys for.
    """
    family = "mobilenet_v2" if any(key.startswith("base_model.features.") for key in state) else "resnet"
    # torchvision's and timm's ResNets have the same names.
    name = "torchvision" if (to, family) == ("timm", "resnet") else to
    if (name, family) == ("mit-online", "resnet"):
        raise ValueError("to='mit-online' is a layout of MobileNetV2 only, got the keys of a ResNet")
    out = {}
    for key, value in state.items():
        new = write_key(key, Layout(name, family), state)
        if new is None:
            raise ValueError(f"key {key!r} cannot be written as {to}")
        out[new] = value
    return out


def read_key(key: str, layout: Layout) -> str | None:
    """Our key for a layout's; None where there is none."""
    for name in ("new_fc", *_heads(layout)):
        if match := re.fullmatch(rf"{re.escape(name)}\.(weight|bias)", key):
            return f"new_fc.{match[1]}"
    if layout.family == "resnet":
        return _read_resnet(key, layout.name)
    return _read_mobilenet(key, layout.name)


def write_key(key: str, layout: Layout, state: Mapping[str, Tensor]) -> str | None:
    """A layout's key for ours; None where there is none. `state` holds all of our keys."""
    if key.startswith("new_fc."):
        name = _heads(layout)[0]
        return {"mit": "module."}.get(layout.name, "") + key.replace("new_fc", name)
    if layout.family == "resnet":
        return _write_resnet(key, layout.name)
    return _write_mobilenet(key, layout.name, state)


def _heads(layout: Layout) -> tuple[str, ...]:
    """Names of the classifier, the one to be written first."""
    if layout.name == "trisparse":
        return ("new_fc",)
    if layout.name == "mmaction2":
        return ("cls_head.fc_cls",)
    if layout.name == "mit":  # without dropout, and before mit-han-lab renamed it, it stays within the network
        return ("new_fc", "base_model.fc" if layout.family == "resnet" else "base_model.classifier")
    if layout.name == "torchvision":
        return ("fc",) if layout.family == "resnet" else ("classifier.1",)
    return ("classifier",)


BLOCK = r"layer(?P<l>[1-4])\.(?P<j>\d{1,3})(?P<whole>\.net)?"


def _read_resnet(key: str, layout: str) -> str | None:
    if layout == "mmaction2":
        if match := re.fullmatch(rf"backbone\.conv1\.(?P<kind>conv|bn)\.{PARAMETER}", key):
            return f"base_model.{match['kind']}1.{match['p']}"
        layer = r"(?P<layer>conv[123]|downsample)\.(?P<kind>conv|bn)(?P<net>\.net)?"
        if not (match := re.fullmatch(rf"backbone\.{BLOCK}\.{layer}\.{PARAMETER}", key)):
            return None
        if match["layer"] == "downsample":
            inner = "downsample.0" if match["kind"] == "conv" else "downsample.1"
        else:
            inner = match["kind"] + match["layer"][-1]
        return (
            f"base_model.layer{match['l']}.{match['j']}{match['whole'] or ''}.{inner}{match['net'] or ''}.{match['p']}"
        )
    prefix = "" if layout == "torchvision" else r"base_model\."
    layer = r"(conv[123](\.net)?|bn[123]|downsample\.[01])"
    if re.fullmatch(rf"{prefix}((conv1|bn1)|{BLOCK}\.{layer})\.{PARAMETER}", key):
        return key if prefix else f"base_model.{key}"
    return None


def _write_resnet(key: str, layout: str) -> str | None:
    if _read_resnet(key, "trisparse") != key:
        return None
    if layout == "torchvision":
        return key.removeprefix("base_model.").replace(".net.", ".")
    if layout != "mmaction2":
        return f"module.{key}" if layout == "mit" else key
    key = re.sub(r"^base_model\.(conv|bn)1\.", r"backbone.conv1.\1.", key)
    key = re.sub(r"^base_model\.", "backbone.", key)
    key = re.sub(r"\.downsample\.0\.", ".downsample.conv.", key)
    key = re.sub(r"\.downsample\.1\.", ".downsample.bn.", key)
    return re.sub(r"(\.\d+(?:\.net)?)\.(conv|bn)([123])\.", r"\1.conv\3.\2.", key)


def _table(feature: int) -> tuple[tuple[str, str, str, str], ...]:
    return PLAIN if feature == 1 else EXPANDED


def _read_mobilenet(key: str, layout: str) -> str | None:
    if layout == "mmaction2":
        if match := re.fullmatch(rf"backbone\.conv(?P<n>[12])\.(?P<kind>conv|bn)\.{PARAMETER}", key):
            return _edge(match["n"] == "2", match["kind"] == "bn", match["p"])
        pattern = (
            rf"backbone\.layer(?P<l>\d)\.(?P<j>\d)\.conv\.(?P<k>[012])(?P<net>\.net)?\.(?P<kind>conv|bn)\.{PARAMETER}"
        )
        if not (match := re.fullmatch(pattern, key)):
            return None
        feature = FEATURE_OF.get((int(match["l"]) - 1, int(match["j"])))
        # Here the shift wraps convolution and norm; the norm's key is told by the convolution's.
        net = match["net"] if match["kind"] == "conv" else None
        return _inner(feature, "", f"{match['k']}.{match['kind']}", 2, net, match["p"])
    if layout == "timm":
        edges = {"conv_stem": (False, False), "bn1": (False, True), "conv_head": (True, False), "bn2": (True, True)}
        if (match := re.fullmatch(rf"(?P<name>\w+)\.{PARAMETER}", key)) and match["name"] in edges:
            return _edge(*edges[match["name"]], match["p"])
        if not (match := re.fullmatch(rf"blocks\.(?P<l>\d)\.(?P<j>\d)\.(?P<k>\w+)\.{PARAMETER}", key)):
            return None
        return _inner(FEATURE_OF.get((int(match["l"]), int(match["j"]))), "", match["k"], 3, None, match["p"])
    prefix = r"base_model\." if layout in ("mit", "trisparse") else ""
    if match := re.fullmatch(rf"{prefix}features\.(?P<i>0|18)\.(?P<k>[01])\.{PARAMETER}", key):
        return _edge(match["i"] == "18", match["k"] == "1", match["p"])
    pattern = rf"{prefix}features\.(?P<i>\d\d?)(?P<whole>\.net)?\.conv\.(?P<k>\d(\.\d)?)(?P<net>\.net)?\.{PARAMETER}"
    if not (match := re.fullmatch(pattern, key)):
        return None
    column = 0 if layout in ("trisparse", "torchvision") else 1
    return _inner(int(match["i"]), match["whole"] or "", match["k"], column, match["net"], match["p"])


def _edge(last: bool, norm: bool, parameter: str) -> str:
    """Our key for the first or the last convolution or its norm."""
    return f"base_model.features.{18 if last else 0}.{int(norm)}.{parameter}"


def _inner(feature: int | None, whole: str, layer: str, column: int, net: str | None, parameter: str) -> str | None:
    """Our key for a layer of a block, named as in a column of its table."""
    if feature not in STAGE_OF:
        return None
    ours = next((row[0] for row in _table(feature) if row[column] == layer), None)
    return None if ours is None else f"base_model.features.{feature}{whole}.conv.{ours}{net or ''}.{parameter}"


def _write_mobilenet(key: str, layout: str, state: Mapping[str, Tensor]) -> str | None:
    if _read_mobilenet(key, "trisparse") != key:
        return None
    if layout == "trisparse":
        return key
    if match := re.fullmatch(rf"base_model\.features\.(?P<i>0|18)\.(?P<k>[01])\.{PARAMETER}", key):
        last, norm = match["i"] == "18", match["k"] == "1"
        if layout == "mmaction2":
            return f"backbone.conv{1 + last}.{'bn' if norm else 'conv'}.{match['p']}"
        if layout == "timm":
            return f"{('bn2' if norm else 'conv_head') if last else ('bn1' if norm else 'conv_stem')}.{match['p']}"
        return {"mit": "module.base_model."}.get(layout, "") + key.removeprefix("base_model.")
    pattern = rf"base_model\.features\.(?P<i>\d+)(?P<whole>\.net)?\.conv\.(?P<k>[\d.]+?)(?P<net>\.net)?\.{PARAMETER}"
    match = re.fullmatch(pattern, key)
    if match is None:
        return None
    feature = int(match["i"])
    row = next(row for row in _table(feature) if row[0] == match["k"])
    stage, index = STAGE_OF[feature]
    if layout == "timm":
        return f"blocks.{stage}.{index}.{row[3]}.{match['p']}"
    if layout == "torchvision":
        return f"features.{feature}.conv.{row[0]}.{match['p']}"
    if layout == "mit-online":  # its blocks know themselves that they are shifted
        return f"features.{feature}.conv.{row[1]}.{match['p']}"
    if layout == "mit":
        return (
            f"module.base_model.features.{feature}{match['whole'] or ''}.conv.{row[1]}{match['net'] or ''}.{match['p']}"
        )
    if match["whole"]:
        return None
    k, kind = row[2].split(".")
    wrapped = k == "0" and f"base_model.features.{feature}.conv.0.0.net.weight" in state
    return f"backbone.layer{stage + 1}.{index}.conv.{k}{'.net' if wrapped else ''}.{kind}.{match['p']}"
