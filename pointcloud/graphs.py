"""Layers and sparse tensors where torch looks through a network: torch.fx graphs, and pytrees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils import _pytree as pytree

from pointcloud.coordinates import Coordinates, IndiceData
from pointcloud.tensor import SparseConvTensor


def leaf_of_graphs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a module's `forward` one node of a torch.fx graph, whichever tracer looks through the network."""

    @functools.wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            proxy = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(proxy, Proxy):
                path = proxy.tracer.path_of_module(self)  # type: ignore[attr-defined]
                return proxy.tracer.create_proxy("call_module", path, args, kwargs)
        return forward(self, *args, **kwargs)

    return call


def trace_on_features(module: nn.Module, input: Proxy) -> Proxy:
    """Add to a torch.fx graph: `module` on the features of a sparse tensor, or on the input where it is none."""
    features = input.tracer.create_proxy("call_function", features_of, (input,), {})
    return input.tracer.create_proxy("call_function", with_features, (input, module(features)), {})


def features_of(x: Any) -> Any:
    """Features of a sparse tensor; anything else itself."""
    return x.features if isinstance(x, SparseConvTensor) else x


def with_features(x: Any, features: Any) -> Any:
    """The sparse tensor with these features; the features themselves where x is no sparse tensor."""
    return x.replace_feature(features) if isinstance(x, SparseConvTensor) else features


class _Place:
    """What a pytree keeps of a sparse tensor besides its features: equal where the cells and their order are."""

    def __init__(self, coordinates: Coordinates, indice_dict: dict[str, IndiceData]) -> None:
        self.coordinates = coordinates
        self.indice_dict = indice_dict

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and self.coordinates.same_as(other.coordinates)

    def __hash__(self) -> int:
        return hash((self.coordinates.spatial_shape, self.coordinates.batch_size))

    def __repr__(self) -> str:
        return str(self.coordinates)


def _flatten(x: SparseConvTensor) -> tuple[list[Any], _Place]:
    return [x.features], _Place(x.coordinates, x.indice_dict)


def _flatten_with_keys(x: SparseConvTensor) -> tuple[list[tuple[pytree.KeyEntry, Any]], _Place]:
    (features,), place = _flatten(x)
    return [(pytree.GetAttrKey("features"), features)], place


def _unflatten(leaves: Any, place: _Place) -> SparseConvTensor:
    (features,) = leaves
    coordinates = place.coordinates
    if isinstance(features, Tensor):
        coordinates = coordinates.to(features.device)
    keys = place.indice_dict if coordinates is place.coordinates else {}
    return SparseConvTensor.holding(features, coordinates, keys)


def register() -> None:
    """Make sparse tensors pytrees: the features are the leaf; the indices follow them to a device.

    Indices are no leaf, as they are no number to differentiate by, to scale or to cast.
    """
    if SparseConvTensor not in pytree.SUPPORTED_NODES:
        pytree.register_pytree_node(
            SparseConvTensor,
            _flatten,
            _unflatten,
            flatten_with_keys_fn=_flatten_with_keys,
            serialized_type_name="pointcloud.SparseConvTensor",
        )


register()
