"""State dicts and states of optimisers that other libraries wrote, for networks of this package's layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pointcloud.checkpoints.layouts import Kernel, decode
from pointcloud.checkpoints.read import layer_versions
from pointcloud.checkpoints.sources import Evidence, Stored, check_source, find_source, layout_of
from pointcloud.convolution import SparseConvolution
from pointcloud.spconv_weights import kernel_one_as_stored

WEIGHT_NAMES = ("weight", "kernel", "weights")


def convert_state_dict(
    state_dict: Mapping[str, Tensor], model: nn.Module, *, source: str | None = None
) -> dict[str, Tensor]:
    """The state dict of the same network, built of another library's layers, for this one.

    Weights of sparse convolutions get the layout and the name (`weight`) that they have here; the batch norms of
    Minkowski Engine lose the `.bn` around them where the network has none. All other keys and tensors stay as they are.

    Args:
        state_dict: of a network whose modules bear the same names.
        model: the network to be loaded; it is not changed.
        source: the library that wrote it: "spconv" (2.2 and later), "spconv-2.1", "spconv-2.0", "spconv-1" (also
            "mmcv"), "torchsparse", "minkowski", "warpconvnet", "fvdb" or "ocnn". By default what names, shapes and
            metadata of the state dict tell.

    Raises:
        ValueError: no weight of the network's layers, one that has not the shape of its layer, or a state dict that
            several libraries may have written, with different meanings: the message asks for `source`.

    Example:
        >>> import pointcloud, torch
        >>> model = pointcloud.SubMConv3d(16, 32, 3, bias=False)
        >>> written = {"weight": torch.randn(3, 3, 3, 16, 32)}  # by spconv 1
        >>> model.load_state_dict(pointcloud.convert_state_dict(written, model))
        <All keys matched successfully>
    """
    return convert_with(state_dict, model, source, Evidence(layer_versions(state_dict), keys=tuple(state_dict)))


def convert_with(
    state_dict: Mapping[str, Tensor], model: nn.Module, source: str | None, evidence: Evidence
) -> dict[str, Tensor]:
    """`convert_state_dict` with what else is known of the writer."""
    stored = list(stored_weights(state_dict, model))
    layers = [name for name, _ in convolutions(model)]
    if layers and not stored:
        raise ValueError(
            f"state_dict must hold weights of the model's {len(layers)} sparse convolutions, such as "
            f"{_child(layers[0], 'weight')!r}, got keys such as {next(iter(state_dict), None)!r}"
        )
    source = _source_of(stored, source, evidence)
    found = {entry.key: entry for entry in stored}
    expected = model.state_dict(keep_vars=True)
    converted: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state_dict.items():
        if key in found:
            entry = found[key]
            converted[_child(entry.name, "weight")] = as_ours(value, source, entry.kernel, key)
            continue
        plain = key.replace(".bn.", ".")
        name = plain if key not in expected and plain in expected else key
        wanted = expected.get(name)
        if wanted is not None and name.endswith("bias") and wanted.shape != value.shape == (1, *wanted.shape):
            value = value[0]  # Minkowski Engine's biases are rows
        converted[name] = value
    # Of layers as the network itself would write it: loaders of frameworks turn the weights of older versions.
    versions = getattr(expected, "_metadata", {})
    kept = {entry.name: versions[entry.name] for entry in stored if entry.name in versions}
    converted._metadata = {**(getattr(state_dict, "_metadata", None) or {}), **kept}  # type: ignore[attr-defined]
    return converted


def convert_optimizer_state(
    optimizer_state: Mapping[str, Any],
    optimizer: Optimizer,
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    *,
    source: str | None = None,
) -> dict[str, Any]:
    """The state dict of an optimiser that trained the network in another library, to resume the training here.

    States of spconv 2.2 and later need no conversion: weights lie here as they do there.

    Args:
        optimizer_state: what the optimiser's `state_dict()` was there.
        optimizer: the one that is to load it, of this network's parameters in the same groups and order.
        state_dict: of the network that it trained, as it was written.
        source: as in `convert_state_dict`.

    Raises:
        ValueError: groups of other sizes than the optimiser's, or as `convert_state_dict`.
    """
    stored = {entry.name: entry for entry in stored_weights(state_dict, model)}
    evidence = Evidence(layer_versions(state_dict), keys=tuple(state_dict))
    source = _source_of(list(stored.values()), source, evidence)
    sizes, wanted = (
        [len(group["params"]) for group in groups]
        for groups in (optimizer_state["param_groups"], optimizer.param_groups)
    )
    if sizes != wanted:
        raise ValueError(f"optimizer_state must have groups of {wanted} parameters, as optimizer has, got {sizes}")
    layers = {id(layer.weight): stored.get(name) for name, layer in convolutions(model)}
    states = dict(optimizer_state["state"])
    for theirs, ours in zip(optimizer_state["param_groups"], optimizer.param_groups):
        for index, parameter in zip(theirs["params"], ours["params"]):
            if index in states:
                states[index] = _state_as_ours(states[index], source, layers.get(id(parameter)), parameter)
    return {**optimizer_state, "state": states}


def _state_as_ours(state: Mapping[str, Any], source: str, entry: Stored | None, parameter: Tensor) -> dict[str, Any]:
    """Momenta, which have the shape of their parameter, as the parameter; counters as they are."""
    converted = dict(state)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if entry is not None and value.shape == entry.weight.shape:
            converted[name] = as_ours(value, source, entry.kernel, f"{name} of {entry.key}")
        elif parameter.ndim == 1 and value.shape == (1, *parameter.shape):
            converted[name] = value[0]
    return converted


def as_ours(weight: Tensor, source: str, kernel: Kernel, key: str) -> Tensor:
    """A weight that `source` wrote as our layer keeps it, contiguous.

    Raises:
        ValueError: it has not the shape of its layer; `key` names it.
    """
    layout = layout_of(source, weight, kernel)
    if layout is None:
        raise ValueError(
            f"{key} must be the weight of {list(kernel.shape)} [Cout, *kernel, Cin] as {source} lays it out, "
            f"got {list(weight.shape)}"
        )
    ordered = decode(weight, layout, kernel)
    return kernel_one_as_stored(ordered) if kernel.product else ordered


def kernel_of(layer: SparseConvolution) -> Kernel:
    """What a layer's weight is."""
    return Kernel(
        layer.out_channels,
        tuple(layer.kernel_size),
        layer.in_channels,
        layer.groups,
        product=max(layer.kernel_size) == max(layer.stride) == layer.groups == 1,
        transposed=layer.transposed or layer.inverse,
    )


def stored_weights(state_dict: Mapping[str, Tensor], model: nn.Module) -> Iterator[Stored]:
    """The weights of the network's sparse convolutions in a state dict, under whatever name."""
    for name, layer in convolutions(model):
        key = next((_child(name, leaf) for leaf in WEIGHT_NAMES if _child(name, leaf) in state_dict), None)
        if key is not None:
            yield Stored(name, key, state_dict[key], kernel_of(layer))


def convolutions(model: nn.Module) -> Iterator[tuple[str, SparseConvolution]]:
    """The network's sparse convolutions by name."""
    for name, module in model.named_modules():
        if isinstance(module, SparseConvolution):
            yield name, module


def _source_of(stored: list[Stored], source: str | None, evidence: Evidence) -> str:
    if source is not None:
        return check_source(source)
    if not stored:
        return "spconv"  # nothing to convert
    return find_source(stored, evidence)


def _child(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf
