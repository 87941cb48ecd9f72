"""State dicts of networks that are not here, converted by what the tensors alone tell; names stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pointcloud.checkpoints.convert import as_ours
from pointcloud.checkpoints.layouts import Kernel
from pointcloud.checkpoints.read import Checkpoint
from pointcloud.checkpoints.sources import MEANINGS, SOURCES, Evidence, Stored, check_source, said_by

MAX_SIZE = 7  # of a kernel that is taken for one; sparse networks use 5 at most
ANY = Kernel(1, (3, 3, 3), 1)
CUBES = {size**3: size for size in range(1, MAX_SIZE + 1)}
DEPTHWISE_TAPS = (8, 27, 125)  # 64 and more are rather channels
# Libraries whose weights alone do not tell what their layers are.
NEED_THE_NETWORK = ("warpconvnet", "fvdb", "ocnn")
# Networks by a key that only they have: project, network.
PROJECTS = (
    (r"conv0p1s1\.", "Minkowski Engine", "MinkUNet"),
    (r"stage1\.1\.net\.0\.kernel", "spvnas", "SPVCNN"),
    (r"downsample\.0\.transition\.", "spvnas", "SPVNAS"),
    (r"backbone_3d\.", "OpenPCDet", "detector"),
    (r"(backbone\.)?conv_input\.0\.weight", "Pointcept", "SpUNet"),
    (r"(backbone\.)?embedding\.stem\.", "Pointcept", "PTv3"),
    (r"(pts_)?middle_encoder\.", "mmdetection3d", "detector"),
    (r"backbone\.encoder\.", "mmdetection3d", "segmentor"),
    (r"(point_features|encoder)\.\d.*\.voxel_layers\.|point_features\.0\.", "PVCNN", "PVCNN"),
)


@dataclass(frozen=True)
class Converted:
    """A state dict in the layouts of this package.

    Attributes:
        tensors: by key; a weight that the library calls `kernel` is called `weight`.
        source: the library that wrote it, None where no layer is a sparse convolution.
        convolutions: number of weights of sparse convolutions.
    """

    tensors: dict[str, Tensor]
    source: str | None
    convolutions: int


def project_of(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """The project and the network whose keys these are; "unknown" twice for others."""
    found = (entry[1:] for entry in PROJECTS if any(re.match(entry[0], key) for key in tensors))
    return next(found, ("unknown", "unknown"))


def convert_standalone(checkpoint: Checkpoint, source: str | None = None) -> Converted:
    """Convert the weights of sparse convolutions over three axes; everything else stays as it is.

    Kernels are taken for cubes, kernels of size 1 for layers without stride. `convert_state_dict` needs none of these
    assumptions, but the network.

    Args:
        source: the library of the layers, as in `convert_state_dict`; by default what names, shapes, the norms after
            the convolutions and the file itself tell.

    Raises:
        ValueError: tensors that do not tell enough; the message says what to decide or that the network is needed.
    """
    if source is not None:
        source = check_source(source)
        if source in NEED_THE_NETWORK:
            raise ValueError(
                f"{checkpoint.name}: weights of {source} do not tell which layers are dense or transposed: "
                "pointcloud.convert_state_dict(state_dict, model, source=...) takes the network"
            )
    try:
        return _by_taps(checkpoint, source) or _by_axes(checkpoint, source)
    except ValueError as error:
        raise ValueError(f"{checkpoint.name}: {error}") from None


def _by_taps(checkpoint: Checkpoint, source: str | None) -> Converted | None:
    """torchsparse's and Minkowski Engine's weights, `[taps, Cin, Cout]`."""
    tensors = checkpoint.tensors
    keys = [key for key, value in tensors.items() if re.search(r"(^|\.)kernel$", key) and value.ndim in (2, 3)]
    if not keys and source not in ("torchsparse", "minkowski"):
        return None
    if not keys:
        raise ValueError(f"weights of {source} are called 'kernel', got none of that name")
    if source not in ("torchsparse", "minkowski", None):
        raise ValueError(f"source must be 'torchsparse' or 'minkowski' for weights called 'kernel', got {source!r}")
    stored = [Stored(key.rpartition(".")[0], key, tensors[key], _cube(key, tensors[key])) for key in keys]
    certain = source == "torchsparse" or said_by(stored, checkpoint.evidence) == {"torchsparse"}
    if source is None:
        source = _of_taps(stored, checkpoint.evidence)
    if source == "minkowski" or not certain:
        _check_depthwise(stored)
    converted = dict(tensors)
    for entry in stored:
        weight = as_ours(converted.pop(entry.key), source, entry.kernel, entry.key)
        converted[_renamed(entry.key)] = weight
        bias = f"{entry.name}.bias".lstrip(".")
        if source == "minkowski" and bias in converted and converted[bias].ndim == 2:
            converted[bias] = converted[bias][0]
    ordered = {_renamed(key) if key in keys else key: None for key in tensors}
    result = {key: converted[key] for key in ordered}
    if source == "minkowski":
        result = {_unwrapped(key, checkpoint.evidence.keys): value for key, value in result.items()}
    return Converted(result, source, len(keys))


def _check_depthwise(stored: list[Stored]) -> None:
    """Raise ValueError for a weight `[taps, channels]`, of a layer that torchsparse has not, or `[Cin, Cout]`."""
    for entry in stored:
        if entry.weight.ndim == 2 and entry.weight.shape[0] in DEPTHWISE_TAPS:
            raise ValueError(
                f"{entry.key} {list(entry.weight.shape)} may be of a depthwise convolution of Minkowski Engine with "
                f"{len(entry.weight)} taps or of a kernel of size 1: pointcloud.convert_state_dict takes the network"
            )


def _renamed(key: str) -> str:
    return f"{key[: -len('kernel')]}weight"


def _unwrapped(key: str, keys: tuple[str, ...]) -> str:
    """Minkowski Engine's norms without the `.bn` around them."""
    parent, found, leaf = key.rpartition(".bn.")
    return f"{parent}.{leaf}" if found and f"{parent}.bn.running_mean" in keys and "." not in leaf else key


def _cube(key: str, weight: Tensor) -> Kernel:
    """The kernel of a weight by taps."""
    if weight.ndim == 2:
        return Kernel(weight.shape[1], (1, 1, 1), weight.shape[0], product=True)
    taps, cin, cout = weight.shape
    if taps not in CUBES:
        raise ValueError(
            f"{key} has {taps} taps, which are no cube: pointcloud.convert_state_dict takes the network, which knows "
            "the size of the kernel"
        )
    return Kernel(cout, (CUBES[taps],) * 3, cin)


def _of_taps(stored: list[Stored], evidence: Evidence) -> str:
    said = said_by(stored, evidence)
    if said is not None and len(said) == 1:
        return next(iter(said))
    if all(entry.kernel.taps % 2 for entry in stored):
        return "torchsparse"  # the two differ in even kernels alone
    raise ValueError(
        f"source must be given: names and shapes do not tell 'torchsparse' from 'minkowski', whose weights of an even "
        f"number of taps differ, such as {next(e.key for e in stored if e.kernel.taps % 2 == 0)!r}"
    )


def _by_axes(checkpoint: Checkpoint, source: str | None) -> Converted:
    """spconv's weights, with an axis for each of the kernel's."""
    tensors = checkpoint.tensors
    keys = [key for key, value in tensors.items() if re.search(r"(^|\.)weight$", key) and value.ndim == 5]
    if not keys:
        if source is not None:
            raise ValueError(f"no tensor is a weight of a sparse convolution of {source} over three axes")
        return Converted(dict(tensors), None, 0)
    if source is None:
        source = _of_axes(checkpoint, keys)
        if source is None:
            return Converted(dict(tensors), None, 0)
    converted = dict(tensors)
    for key in keys:
        converted[key] = as_ours(tensors[key], source, _kernel(key, tensors[key], source), key)
    return Converted(converted, source, len(keys))


def _places(weight: Tensor) -> set[int]:
    """Axes at which the three of the kernel may begin."""
    return {first for first in range(3) if max(weight.shape[first : first + 3]) <= MAX_SIZE}


def _of_axes(checkpoint: Checkpoint, keys: list[str]) -> str | None:
    """The version of spconv; None for dense convolutions."""
    each = [_places(checkpoint.tensors[key]) for key in keys]
    places = set.intersection(*each)
    if places == {2}:
        return None
    if places == {1}:
        return "spconv"
    if not places and {frozenset(of_one) for of_one in each} == {frozenset({0}), frozenset({1})}:
        return "spconv-2.1"  # which lays out small and large kernels differently
    if places == {0}:
        stored = [Stored(key.rpartition(".")[0], key, checkpoint.tensors[key], ANY) for key in keys]
        said = said_by(stored, checkpoint.evidence) or {"spconv-2.0", "spconv-1"}
        choices = {"spconv-2.0" if source == "spconv-2.1" else source for source in said} & {"spconv-2.0", "spconv-1"}
        if len(choices) > 1:
            choices = _by_norms(checkpoint.tensors, keys) or choices
        if len(choices) == 1:
            return next(iter(choices))
        named = ", ".join(f"{name!r} ({MEANINGS[name]})" for name in sorted(choices))
        example = next((key for key in keys if max(checkpoint.tensors[key].shape[:3]) > 1), keys[0])
        raise ValueError(
            f"source must be given: the shapes of the {len(keys)} weights, such as "
            f"{list(checkpoint.tensors[example].shape)} of {example!r}, do not tell which of {named} wrote them"
        )
    raise ValueError(
        f"source must be given, one of {', '.join(SOURCES)}: the {len(keys)} weights of five axes, such as "
        f"{list(checkpoint.tensors[keys[0]].shape)} of {keys[0]!r}, may have their kernels at several axes, or each at "
        "others: pointcloud.convert_state_dict takes the network, which knows"
    )


def _by_norms(tensors: Mapping[str, Tensor], keys: list[str]) -> set[str]:
    """What the sizes of biases, and of the norms that come next in the file, say: in which axis the outputs are."""
    order = list(tensors)
    found = set()
    for key in keys:
        a, b = tensors[key].shape[3:]
        bias = tensors.get(f"{key.removesuffix('weight')}bias")
        following = order[order.index(key) + 1 :]
        until = next((i for i, other in enumerate(following) if other in keys), len(following))
        norm = next((tensors[other] for other in following[:until] if other.endswith(".running_mean")), None)
        size = len(bias) if bias is not None else len(norm) if norm is not None else None
        if a != b and size in (a, b):
            found.add("spconv-2.0" if size == a else "spconv-1")
    return found


def _kernel(key: str, weight: Tensor, source: str) -> Kernel:
    """The kernel of a weight by axes."""
    shape, places = tuple(weight.shape), _places(weight)
    possible = {"spconv": {1}, "spconv-2.1": {0, 1}}.get(source, {0}) & places
    if len(possible) != 1:
        raise ValueError(
            f"{key} {list(shape)} {'does not tell' if possible else 'has not'} the kernel's axes as {source} lays them "
            "out: pointcloud.convert_state_dict takes the network, which knows"
        )
    if possible == {1}:
        size, cout, cin = shape[1:4], shape[0], shape[4]
    elif source == "spconv-1":
        size, cin, cout = shape[:3], shape[3], shape[4]
    else:
        size, cout, cin = shape[:3], shape[3], shape[4]
    return Kernel(cout, size, cin, product=max(size) == 1)
