"""Convolution, batch norm, residual sum and activation made one operation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from common_models.folding import fold_scale
from video.delta.capture import Graph, Operation, Ref, aten

_ACTIVATIONS = {aten.relu.default: "relu", aten.hardswish.default: "hardswish", aten.silu.default: "silu"}


@dataclass(frozen=True)
class Convolution:
    """`act(conv(x) * scale + shift + residual)` with the scale within the weights, in fp64."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str = "none"
    residual: bool = False

    def __call__(self, *_: Any) -> Any:
        raise TypeError("a fused convolution is run by its layer")

    @property
    def products_per_pixel(self) -> int:
        """Multiplications for one output pixel."""
        return self.weight.numel()


def fuse(graph: Graph) -> Graph:
    """The graph with each convolution and what follows it alone as one operation whose target is a Convolution."""
    users, needed = graph.users(), graph.needed
    position = {operation.output: at for at, operation in enumerate(graph.operations)}
    operations: list[Operation | None] = list(graph.operations)
    for at, operation in enumerate(graph.operations):
        fused = _convolution(graph, operation)
        if fused is None or operations[at] is None:
            continue
        last, inputs, swallowed = operation, [operation.args[0]], [at]

        def follower(value: int) -> Operation | None:
            alone = len(users[value]) == 1 and value not in needed
            return users[value][0] if alone else None

        following = follower(last.output)
        if following is not None and following.target is aten.batch_norm.default:
            folded = _fold(graph, fused, following)
            if folded is not None:
                fused, last = folded, following
                swallowed.append(position[last.output])
                following = follower(last.output)
        if following is not None:
            other = _residual(graph, following, last.output)
            # Both sides of a sum may be convolutions: it joins the one that runs last, when the other is there.
            if other is not None and position.get(other, -1) < at:
                fused, last = replace(fused, residual=True), following
                inputs.append(Ref(other))
                swallowed.append(position[last.output])
                following = follower(last.output)
        if following is not None and (activation := _activation(following)):
            fused, last = replace(fused, activation=activation), following
            swallowed.append(position[last.output])
        for each in swallowed:
            operations[each] = None
        operations[swallowed[-1]] = Operation(operation.name, fused, tuple(inputs), {}, last.output)
        graph.names[last.output] = operation.name
    return replace(graph, operations=[operation for operation in operations if operation is not None])


def _convolution(graph: Graph, operation: Operation) -> Convolution | None:
    """The operation as a Convolution, if it is one over two axes with constant weights."""
    if operation.kwargs:
        return None
    padding: Any
    if operation.target in (aten.conv2d.default, aten.conv2d.padding):
        x, weight, bias, stride, padding, dilation, groups = _filled(operation.args, (None, 1, 0, 1, 1))
    elif operation.target is aten.convolution.default:
        x, weight, bias, stride, padding, dilation, transposed, _, groups = operation.args
        if transposed:
            return None
    else:
        return None
    constant = graph.constants
    batch = graph.shapes[graph.frame][0]
    if any(len(graph.shapes[each]) != 4 or graph.shapes[each][0] != batch for each in (x.index, operation.output)):
        return None  # not one image for each stream
    if weight.index not in constant or (bias is not None and bias.index not in constant) or x.index in constant:
        return None
    values = constant[weight.index].double()
    spread = _both(dilation)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [spread[axis] * (values.shape[2 + axis] - 1) for axis in range(2)]
        if total[0] % 2 or total[1] % 2:
            return None  # one row more on one side than on the other
        padding = [total[0] // 2, total[1] // 2]
    return Convolution(
        values,
        None if bias is None else constant[bias.index].double(),
        _both(stride),
        _both(padding),
        spread,
        groups,
    )


def _filled(args: tuple[Any, ...], defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    return args + defaults[len(args) - 2 :]


def _both(value: Any) -> tuple[int, int]:
    pair = [value] if isinstance(value, int) else list(value)
    return (pair[0], pair[-1])


def _fold(graph: Graph, convolution: Convolution, norm: Operation) -> Convolution | None:
    refs = norm.args[1:5]
    if any(ref is not None and ref.index not in graph.constants for ref in refs) or norm.args[5]:
        return None
    weight, bias, mean, var = (None if ref is None else graph.constants[ref.index].double() for ref in refs)
    if mean is None or var is None:
        return None
    folded, shift = fold_scale(convolution.weight, convolution.bias, mean, var, norm.args[7], weight, bias)
    return replace(convolution, weight=folded, bias=shift)


def _residual(graph: Graph, operation: Operation, value: int) -> int | None:
    """The other term, where the operation adds a value of the same shape to `value`."""
    if operation.target is not aten.add.Tensor or operation.kwargs.get("alpha", 1) != 1:
        return None
    terms = [arg.index for arg in operation.args if isinstance(arg, Ref)]
    if len(terms) != 2 or terms[0] == terms[1]:
        return None
    other = terms[1] if terms[0] == value else terms[0]
    constant = other in graph.constants
    return None if constant or graph.shapes[other] != graph.shapes[value] else other


def _activation(operation: Operation) -> str | None:
    if operation.target is aten.hardtanh.default:
        return "relu6" if tuple(operation.args[1:]) == (0, 6) or tuple(operation.args[1:]) == (0.0, 6.0) else None
    if operation.target is aten.relu6.default:
        return "relu6"
    return _ACTIVATIONS.get(operation.target)  # type: ignore[call-overload]
