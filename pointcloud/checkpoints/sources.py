"""Which library wrote a state dict: by the names and shapes of its weights, else by what the file says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from common_models.names import did_you_mean
from pointcloud.checkpoints.layouts import LAYOUTS, Kernel

LARGE_KERNEL = 32  # taps above which spconv 2.1 computes by its older algorithm
# What each library calls the weight of a convolution, and the layouts of its weights, the likeliest first.
LEAVES = {
    "spconv": "weight",
    "spconv-2.1": "weight",
    "spconv-2.0": "weight",
    "spconv-1": "weight",
    "torchsparse": "kernel",
    "minkowski": "kernel",
    "warpconvnet": "weight",
    "fvdb": "weight",
    "ocnn": "weights",
}
SOURCES = tuple(LEAVES)
MEANINGS = {
    "spconv": "spconv 2.2 and later, or pointcloud",
    "spconv-2.1": "spconv 2.1",
    "spconv-2.0": "spconv 2.0",
    "spconv-1": "spconv 1.x or mmcv.ops",
    "torchsparse": "torchsparse 1.x or 2.x",
    "minkowski": "Minkowski Engine 0.5",
    "warpconvnet": "WarpConvNet",
    "fvdb": "fVDB",
    "ocnn": "ocnn-pytorch",
}


@dataclass(frozen=True)
class Stored:
    """The weight of one convolution in a state dict.

    Attributes:
        name: of the layer.
        key: of the weight.
        weight: as it is stored.
        kernel: what the layer is.
    """

    name: str
    key: str
    weight: Tensor
    kernel: Kernel


@dataclass(frozen=True)
class Evidence:
    """What a file says of its writer beside names and shapes.

    Attributes:
        layer_versions: of each module, from the state dict's metadata.
        writers: of the frameworks that the file names, such as {"pcdet": "0.3.0"}.
        keys: all keys of the state dict.
    """

    layer_versions: Mapping[str, int] = field(default_factory=dict)
    writers: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()


def check_source(source: str) -> str:
    """The name of a source; mmcv's layers are those of spconv 1.

    Raises:
        ValueError: an unknown one.
    """
    if source == "mmcv":
        return "spconv-1"
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}{did_you_mean(source, SOURCES)}")
    return source


def layout_of(source: str, weight: Tensor, kernel: Kernel) -> str | None:
    """The layout that a weight of this shape has where `source` wrote it, None where it cannot have."""
    names = {
        "spconv": ["krsc"],
        "spconv-2.1": ["krsc", "rskc"] if kernel.taps <= LARGE_KERNEL else ["rskc", "krsc"],
        "spconv-2.0": ["rskc"],
        "spconv-1": ["rsck"],
        "minkowski": ["minkowski", "minkowski-cross"],
    }.get(source, [source])
    return next((name for name in names if tuple(weight.shape) in LAYOUTS[name].shapes(kernel)), None)


def find_source(stored: Iterable[Stored], evidence: Evidence) -> str:
    """The library whose layouts all of the weights have.

    Raises:
        ValueError: there is none, or several with different results; the message says what to decide.
    """
    stored = list(stored)
    fitting: dict[tuple[str, ...], list[str]] = {}
    for source in SOURCES:
        if any(not entry.key.endswith(f".{LEAVES[source]}") and entry.key != LEAVES[source] for entry in stored):
            continue
        layouts = [layout_of(source, entry.weight, entry.kernel) for entry in stored]
        operations = tuple(
            LAYOUTS[layout].operation(entry.kernel) for layout, entry in zip(layouts, stored) if layout is not None
        )
        if len(operations) == len(stored):
            fitting.setdefault(operations, []).append(source)
    choices = [sources[0] for sources in fitting.values()]
    if len(choices) > 1:
        choices = _decided(choices, fitting.values(), stored, evidence) or choices
    if not choices:
        raise ValueError(_misfit(stored))
    if len(choices) > 1:
        named = ", ".join(f"{source!r} ({MEANINGS[source]})" for source in choices)
        example = next((entry for entry in stored if entry.kernel.taps > 1), stored[0])
        raise ValueError(
            f"source must be given: the shapes of the {len(stored)} weights, such as {list(example.weight.shape)} of "
            f"{example.key!r}, do not tell which of {named} wrote them"
        )
    return choices[0]


def _decided(
    choices: list[str], groups: Iterable[list[str]], stored: list[Stored], evidence: Evidence
) -> list[str] | None:
    """The choice that the evidence leaves, if it says anything about these."""
    said = said_by(stored, evidence)
    if said is None:
        return None
    return [choice for choice, group in zip(choices, groups) if set(group) & said] or None


def said_by(stored: list[Stored], evidence: Evidence) -> set[str] | None:
    """The libraries that the evidence allows."""
    if {entry.key.rpartition(".")[2] for entry in stored} == {"kernel"}:
        if any(_is_wrapped(key, evidence.keys) for key in evidence.keys):
            return {"minkowski"}
        if any(key.endswith(".running_mean") for key in evidence.keys):
            return {"torchsparse"}
        return None
    versions = {evidence.layer_versions.get(entry.name) for entry in stored}
    if versions == {2}:  # mmdetection3d marks the layers of spconv 2 so
        return {"spconv", "spconv-2.1", "spconv-2.0"}
    if "mmdet3d" in evidence.writers and versions == {1}:
        return {"spconv-1"}
    pcdet = evidence.writers.get("pcdet", "")
    if pcdet.startswith(("0.1.", "0.2.", "0.3.", "0.4.")):  # spconv 2 came with 0.5
        return {"spconv-1"}
    return None


def _is_wrapped(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a norm is all that there is in its parent, under the name `bn`: so Minkowski Engine's are kept."""
    parent, found, _ = key.rpartition(".bn.running_mean")
    return bool(found) and all(other.startswith(f"{parent}.bn.") for other in keys if other.startswith(f"{parent}."))


def _misfit(stored: list[Stored]) -> str:
    for entry in stored:
        if all(layout_of(source, entry.weight, entry.kernel) is None for source in SOURCES):
            return (
                f"{entry.key} must be the weight of {list(entry.kernel.shape)} [Cout, *kernel, Cin] in the layout of "
                f"one of {', '.join(SOURCES)}, got {list(entry.weight.shape)}"
            )
    return f"the {len(stored)} weights must be in the layouts of one library, got those of several"
