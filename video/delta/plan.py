"""A captured network prepared for frames of one shape: its layers, and the ways to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from common_kernels.row_update import update_rows
from video.delta.capture import Operation, Ref, aten, capture
from video.delta.fuse import fuse
from video.delta.layers import ConvolutionLayer, Layer, Values, WholeLayer, build, images_of


class Plan:
    """The layers of a network for frames of one shape [B, C, H, W], and the names under which a state keeps values.

    Attributes:
        layers: in the order in which they run.
        kept: names in the state of the values that are kept, by value number.
        dense_cost: multiplications of the convolutions and linear layers for one frame of every stream.
    """

    def __init__(self, model: nn.Module, frames: Tensor, dtype: torch.dtype) -> None:
        graph = fuse(capture(model, frames))
        device = frames.device
        self.graph = graph
        self.dtype = dtype
        self.images = images_of(graph)
        self.constants: list[Tensor | None] = [None] * len(graph.shapes)
        statistics = _statistics(graph.operations)
        for index, tensor in graph.constants.items():
            floating = tensor.is_floating_point() and index not in statistics
            self.constants[index] = tensor.to(device, dtype if floating else None)
        with torch.no_grad():
            self.layers: list[Layer] = build(graph, dtype, device)
        self.by_output = {layer.output: layer for layer in self.layers}
        self.kept = {
            layer.output: f"kept.{layer.name}"
            for layer in self.layers
            if not isinstance(layer, WholeLayer) or layer.kept
        }
        self._first_kept = next(iter(self.kept.values()), None)
        self.kept[graph.frame] = "frame"
        self.dense_cost = sum(layer.cost for layer in self.layers)
        self._no_images = [False] * len(self.images)
        self._last_used = self._last_uses()

    def _last_uses(self) -> list[list[int]]:
        """For each layer the values that nobody reads after it."""
        needed, seen = self.graph.needed, set()
        uses: list[list[int]] = []
        for layer in reversed(self.layers):
            last = [index for index in layer.inputs if index not in seen and index not in needed]
            seen.update(layer.inputs)
            uses.append(last)
        return uses[::-1]

    def dense(self, x: Tensor, slots: Mapping[str, Tensor], keep: bool) -> list[Tensor | None]:
        """All values of a frame x [B, H, W, C], each in the network's own layout; only those needed unless `keep`."""
        values = Values(list(self.constants), self._no_images, counted=False)
        values.kept[self.graph.frame] = x.permute(0, 3, 1, 2)
        for name, index in self.graph.states.items():
            values.kept[index] = slots[f"shift.{name}"].permute(0, 3, 1, 2)
        for layer, unused in zip(self.layers, self._last_used):
            values.kept[layer.output] = layer.compute(values)
            if not keep:
                for index in unused:
                    values.kept[index] = None
        return values.kept

    def keep(self, dense: list[Tensor | None], x: Tensor) -> dict[str, Tensor]:
        """The tensors of a state from the values that `dense` gave for x, each with memory of its own; x is taken."""
        tensors = {"frame": x}
        shared = [x, *self.constants, *(dense[index] for index in self.graph.states.values())]
        owned = {tensor.untyped_storage().data_ptr() for tensor in shared if tensor is not None}
        for index, name in self.kept.items():
            if name == "frame":
                continue
            value = dense[index]
            assert value is not None  # dense(keep=True) gives all
            value = (value.permute(0, 2, 3, 1) if self.images[index] else value).contiguous()
            if value.untyped_storage().data_ptr() in owned:
                value = value.clone()
            owned.add(value.untyped_storage().data_ptr())
            tensors[name] = value
        return tensors

    def has_kept(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a state's tensors hold the layers' outputs."""
        return self._first_kept is None or self._first_kept in tensors

    def without_kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a state without the layers' outputs."""
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("kept.")}

    def names(self, tensors: Mapping[str, Tensor]) -> set[str]:
        """The names that a state of this network with these tensors has."""
        names = {"frame", *(f"{kind}.{name}" for kind in ("shift", "moved") for name in self.graph.states)}
        if "policy" in tensors:
            names.add("policy")
        return names | set(self.kept.values()) if self.has_kept(tensors) else names

    def blank(self) -> dict[str, Tensor]:
        """The tensors of a state of streams that have seen nothing: NaN, which every comparison takes for changed."""
        tensors = {}
        for index, name in self.kept.items():
            shape, kind = self.graph.shapes[index], self.graph.dtypes[index]
            if self.images[index]:
                shape = (shape[0], shape[2], shape[3], shape[1])
            device = self.device
            if kind.is_floating_point:
                tensors[name] = torch.full(shape, torch.nan, dtype=self.dtype, device=device)
            else:
                tensors[name] = torch.zeros(shape, dtype=kind, device=device)
        return tensors

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        first = next((layer for layer in self.layers if isinstance(layer, ConvolutionLayer)), None)
        constants = (tensor for tensor in self.constants if tensor is not None)
        return first.kernel.weight.device if first is not None else next(constants, torch.empty(0)).device

    def values(self, tensors: Mapping[str, Tensor], fresh: Sequence[bool], counted: bool) -> Values:
        """The kept values of a state, of which nothing changed yet."""
        values = Values(list(self.constants), self.images, counted)
        values.layers = self.by_output
        values.fresh = torch.tensor(fresh, device=self.device) if any(fresh) else None
        for index, name in self.kept.items():
            values.kept[index] = tensors[name]
        for name, index in self.graph.states.items():
            values.kept[index] = tensors[f"shift.{name}"]
        return values

    def slot_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes [B, h, w, f] of what shifts remember, by name."""
        shapes = {name: self.graph.shapes[index] for name, index in self.graph.states.items()}
        return {name: (shape[0], shape[2], shape[3], shape[1]) for name, shape in shapes.items()}

    def remember(self, values: Values, tensors: dict[str, Tensor]) -> None:
        """Bring what the shifts remember up to date, when no layer reads the frame before any more."""
        for name, index in self.graph.new_states.items():
            slot, moved = tensors[f"shift.{name}"], values.changed[index]
            if moved is None:
                tensors[f"moved.{name}"] = torch.zeros_like(tensors[f"moved.{name}"])
            else:
                new = values.get(index).permute(0, 2, 3, 1).contiguous()
                tensors[f"moved.{name}"] = update_rows(slot, new, moved)

    def outputs(self, value: Callable[[int], Tensor | None]) -> list[object]:
        """The leaves of the network's output; tensors in memory of their own."""
        leaves: list[object] = []
        for leaf in self.graph.outputs:
            tensor = value(leaf.index) if isinstance(leaf, Ref) else None
            leaves.append(leaf if tensor is None else tensor.clone())
        return leaves

    @property
    def output_spec(self) -> TreeSpec:
        """How the leaves make up the network's output."""
        return self.graph.spec


def _statistics(operations: list[Operation]) -> set[int]:
    """Constants that only batch norms read: they stay as exact as they are."""
    norms: set[int] = set()
    others: set[int] = set()
    for operation in operations:
        (norms if operation.target is aten.batch_norm.default else others).update(operation.inputs)
    return norms - others
