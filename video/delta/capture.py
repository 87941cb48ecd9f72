"""A network's computation on one frame as a flat list of operations on values."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_leaves

from common_kernels.checks import describe
from common_models.modes import check_evaluating
from video.stream import LiveNetwork, check_frames

aten = torch.ops.aten

# Operations that return their argument's values as they are.
_SAME = (
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


@dataclass(frozen=True)
class Ref:
    """A value by its number, where an operation's arguments name it."""

    index: int


@dataclass(frozen=True)
class Operation:
    """One operation: `target(*args, **kwargs)`, in which Refs stand for values, gives value `output`."""

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: int

    @property
    def inputs(self) -> list[int]:
        """The values it reads, each once, in the order of its arguments."""
        refs = [leaf.index for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Ref)]
        return list(dict.fromkeys(refs))


@dataclass
class Graph:
    """What a network computes from one frame of every stream.

    Attributes:
        operations: in an order in which each reads only what comes before it.
        shapes, dtypes, names: of each value.
        constants: the values that depend on no frame.
        frame: the value that is the frame.
        states: the values that are the frame before's, by the name of their shift.
        new_states: the values that they become for the frame after, by the same names.
        outputs: the values that make up the network's output; anything else in it is itself.
        spec: how they make it up.
    """

    operations: list[Operation]
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    names: list[str]
    constants: dict[int, Tensor]
    frame: int
    states: dict[str, int]
    new_states: dict[str, int]
    outputs: list[Ref | Any]
    spec: TreeSpec

    @property
    def needed(self) -> set[int]:
        """The values that the network returns or remembers."""
        return {leaf.index for leaf in self.outputs if isinstance(leaf, Ref)} | set(self.new_states.values())

    def users(self) -> dict[int, list[Operation]]:
        """The operations that read each value."""
        users: dict[int, list[Operation]] = {index: [] for index in range(len(self.shapes))}
        for operation in self.operations:
            for index in operation.inputs:
                users[index].append(operation)
        return users


class Pick:
    """One result of an operation that has several."""

    def __init__(self, target: Callable[..., Any], index: int) -> None:
        self.target = target
        self.index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)[self.index]

    def __repr__(self) -> str:
        return f"{self.target}[{self.index}]"


def capture(model: nn.Module, frames: Tensor) -> Graph:
    """The graph of a network in evaluation mode for frames of the shape of `frames` [B, C, H, W].

    Raises:
        ValueError: the network reads the future, is in training mode, or cannot be captured by torch.export.
    """
    check_frames(frames)
    live = LiveNetwork(model)
    check_evaluating(model)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), frames)
    example = torch.zeros(frames.shape, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad():
            shapes = live.state_shapes(tuple(example.shape)) if live.state_names else {}
            states = [example.new_zeros(shape) for shape in shapes.values()]
            exported = torch.export.export(live, (example, *states), strict=False)
            with warnings.catch_warnings():
                # torch copies its own specs of structures, in a way that it deprecates.
                warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
                exported = exported.run_decompositions({})
    except Exception as error:  # torch.export raises of many kinds, and whatever the network itself raises
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ValueError(
            f"model ({type(model).__name__}) cannot be captured by torch.export for frames {describe(frames)}: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return _Builder(exported, live.state_names).graph


class _Builder:
    """Turns torch.export's graph into ours: constants folded, copies left out, results of several picked apart."""

    def __init__(self, exported: torch.export.ExportedProgram, state_names: tuple[str, ...]) -> None:
        self.values: dict[fx.Node, int | tuple[Any, ...]] = {}
        spec = exported.call_spec.out_spec
        # The live network returns (output, *new states).
        self.graph = Graph([], [], [], [], {}, -1, {}, {}, [], spec.child(0))
        signature = exported.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()][0]
            raise ValueError(f"model must not change its buffers while it runs, it writes {changed}")
        held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        held |= signature.inputs_to_lifted_tensor_constants
        user_inputs = iter(["", *state_names])
        with torch.no_grad():
            for node in exported.graph.nodes:
                if node.op == "placeholder":
                    if node.name in held:
                        key = held[node.name]
                        tensor = exported.state_dict[key] if key in exported.state_dict else exported.constants[key]
                        self._constant(node, tensor.detach())
                    else:
                        self._input(node, next(user_inputs))
                elif node.op == "call_function":
                    self._call(node)
                elif node.op == "output":
                    self._outputs(node.args[0], state_names)
                else:
                    raise ValueError(f"model has an operation without a meaning here: {node.format_node()}")
        self._drop_unused()

    def _value(self, node: fx.Node) -> int:
        meta = node.meta["val"]
        index = len(self.graph.shapes)
        self.graph.shapes.append(tuple(meta.shape))
        self.graph.dtypes.append(meta.dtype)
        self.graph.names.append(node.name)
        self.values[node] = index
        return index

    def _constant(self, node: fx.Node, tensor: Tensor) -> None:
        self.graph.constants[self._value(node)] = tensor

    def _input(self, node: fx.Node, state: str) -> None:
        index = self._value(node)
        if state:
            self.graph.states[state] = index
        else:
            self.graph.frame = index

    def _call(self, node: fx.Node) -> None:
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        args, kwargs = node.args, dict(node.kwargs)
        meta = node.meta.get("val")
        if target is operator.getitem:
            self._pick(node)
            return
        if not isinstance(meta, Tensor):  # several results: known by their getitems; none at all: an assertion
            self.values[node] = (target, args, kwargs)
            return
        source = args[0] if args else None
        if target in _SAME and isinstance(source, fx.Node):
            # Between floating dtypes the network's own dtype, which the plan chooses, stands for all.
            floats = meta.dtype.is_floating_point and source.meta["val"].dtype.is_floating_point
            if floats or meta.dtype == source.meta["val"].dtype:
                self.values[node] = self.values[source]
                return
        self._operation(node, target, args, kwargs)

    def _pick(self, node: fx.Node) -> None:
        source, item = node.args
        target, args, kwargs = self.values[source]  # type: ignore[index,misc]
        if target is aten._native_batch_norm_legit_no_training.default and item == 0:
            x, weight, bias, mean, var, momentum, eps = args
            self._operation(
                node, aten.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False), {}
            )
        elif target in _SPLITS:
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            sizes = [each.shape[dim] for each in source.meta["val"]]  # type: ignore[union-attr]
            at = int(item)  # type: ignore[arg-type]
            start = sum(sizes[:at])
            self._operation(node, aten.slice.Tensor, (args[0], dim, start, start + sizes[at]), {})
        else:
            self._operation(node, Pick(target, item), args, kwargs)  # type: ignore[arg-type]

    def _operation(self, node: fx.Node, target: Callable[..., Any], args: Any, kwargs: Any) -> None:
        args, kwargs = fx.node.map_arg((args, kwargs), lambda source: Ref(self.values[source]))  # type: ignore
        operation = Operation(node.name, target, tuple(args), dict(kwargs), -1)
        constants = self.graph.constants
        if all(index in constants for index in operation.inputs):
            self._constant(node, call(operation, constants.__getitem__))
        else:
            self.graph.operations.append(replace(operation, output=self._value(node)))

    def _outputs(self, results: Any, state_names: tuple[str, ...]) -> None:
        leaves = [Ref(self.values[each]) if isinstance(each, fx.Node) else each for each in results]  # type: ignore
        n = len(leaves) - len(state_names)
        self.graph.outputs = leaves[:n]
        self.graph.new_states = {name: leaf.index for name, leaf in zip(state_names, leaves[n:])}

    def _drop_unused(self) -> None:
        needed, kept = self.graph.needed, []
        for operation in reversed(self.graph.operations):
            if operation.output in needed:
                needed.update(operation.inputs)
                kept.append(operation)
        self.graph.operations = kept[::-1]


def call(operation: Operation, value: Callable[[int], Any]) -> Any:
    """The operation's result, where `value` gives the values that it reads."""
    arguments = [
        value(each.index)
        if type(each) is Ref
        else [value(item.index) if type(item) is Ref else item for item in each]
        if isinstance(each, (list, tuple))
        else each
        for each in operation.args
    ]
    named = operation.kwargs
    if named:
        named = {key: value(each.index) if type(each) is Ref else each for key, each in named.items()}
    return operation.target(*arguments, **named)
