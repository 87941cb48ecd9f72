"""How each kind of operation brings its kept output up to date when some of its inputs changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common_kernels.conv_update import ConvUpdate
from common_kernels.pool_update import pool_update
from common_kernels.reach import reach_window
from common_kernels.row_update import update_rows
from video.delta.capture import Graph, Operation, aten, call
from video.delta.fuse import Convolution

# Operations whose result at a pixel depends on that pixel of their inputs alone, whatever their other arguments.
POINTWISE = {
    getattr(packet, overload)
    for names, overload in (
        ("relu relu6 hardtanh hardswish hardsigmoid silu sigmoid tanh gelu mish elu selu celu leaky_relu softplus", ""),
        ("clamp clamp_min clamp_max exp sqrt rsqrt abs neg log square reciprocal erf softsign hardshrink prelu", ""),
        ("add sub mul div maximum minimum pow", "Tensor"),
        ("add sub mul div rsub", "Scalar"),
        ("pow", "Tensor_Scalar"),
        ("batch_norm", ""),
    )
    for name in names.split()
    if (packet := getattr(aten, name, None)) is not None
    for overload in (overload or "default",)
    if overload in packet.overloads()
}
_ALONG_CHANNELS = (aten.cat.default, aten.slice.Tensor, aten.softmax.int, aten._softmax.default)
_VIEWS = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


class Values:
    """The values of one frame of every stream while a network runs: what is kept, and what of it changed.

    An image is kept as contiguous [B, H, W, C]; `get` gives any value in the network's own layout.

    Attributes:
        kept: tensors by value number, constants among them; None for what is not kept and was not needed yet.
        changed: [B, H, W] bool of an image, [B] bool of any other value, None where nothing changed.
        counted: whether a mask may be read by the host (not on a GPU, which would wait).
    """

    def __init__(self, kept: list[Tensor | None], images: list[bool], counted: bool) -> None:
        self.kept = kept
        self.images = images
        self.counted = counted
        self.changed: list[Tensor | None] = [None] * len(kept)
        self.layers: dict[int, Layer] = {}
        self.fresh: Tensor | None = None

    def get(self, index: int) -> Tensor:
        """The value in the network's own layout."""
        kept = self.kept[index]
        if kept is None:  # not kept: computed from what is
            kept = self.kept[index] = self.layers[index].compute(self)
        return kept.permute(0, 3, 1, 2) if self.images[index] else kept

    def mark(self, index: int, changed: Tensor) -> None:
        """Note what of a value changed."""
        self.changed[index] = changed if not self.counted or count(changed) else None


def count(mask: Tensor) -> int:
    """True elements of a mask on the CPU."""
    return int(np.count_nonzero(mask.numpy()))


class Layer(ABC):
    """One operation.

    Attributes:
        name: of the operation.
        inputs, output: values.
        cost: multiplications for the whole output of one frame of every stream.
    """

    def __init__(self, graph: Graph, operation: Operation) -> None:
        self.name = operation.name
        self.operation = operation
        self.inputs = [index for index in operation.inputs if index not in graph.constants]
        self.output = operation.output
        self.shape = graph.shapes[operation.output]
        self.cost = 0

    @abstractmethod
    def compute(self, values: Values) -> Tensor:
        """The whole output in the network's layout, from inputs in the same layout."""

    @abstractmethod
    def update(self, values: Values, threshold: float, dense: bool | float | None) -> int:
        """Bring the kept output up to date, mark what changed; returns how many positions were computed.

        `dense` says from which share of its positions on a convolution is computed as a whole, as in `ConvUpdate`.
        """

    @property
    def positions(self) -> int:
        """Positions that change on their own: pixels of an image, rows of any other value."""
        if len(self.shape) == 4:
            return self.shape[0] * self.shape[2] * self.shape[3]
        return self.shape[0] if self.shape else 1


class ConvolutionLayer(Layer):
    """Convolution with what follows it, on the pixels that its input's changes reach."""

    def __init__(self, graph: Graph, operation: Operation, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(graph, operation)
        target: Convolution = operation.target  # type: ignore[assignment]
        self.convolution = target
        weight = target.weight.to(device, dtype)
        self.kernel = ConvUpdate(
            weight,
            None if target.bias is None else target.bias.to(device, torch.promote_types(dtype, torch.float32)),
            stride=target.stride,
            padding=target.padding,
            dilation=target.dilation,
            groups=target.groups,
            activation=target.activation,
        )
        self.window = self.kernel.window
        self.x = self.inputs[0]
        self.residual = operation.args[1].index if target.residual else None
        self.cost = self.positions * target.products_per_pixel

    def compute(self, values: Values) -> Tensor:
        residual = None if self.residual is None else values.get(self.residual)
        return self.kernel.library(values.get(self.x), residual)

    def update(self, values: Values, threshold: float, dense: bool | float | None) -> int:
        changed = values.changed[self.x]
        also = None if self.residual is None else values.changed[self.residual]
        if changed is None and also is None:
            return 0
        kept = values.kept
        x, out = kept[self.x], kept[self.output]
        assert x is not None and out is not None  # both are kept
        if changed is None:
            changed = x.new_zeros(x.shape[:3], dtype=torch.bool)
        residual = None if self.residual is None else kept[self.residual]
        done = self.kernel(x, changed, out, residual=residual, also=also, threshold=threshold, dense=dense)
        values.mark(self.output, done)
        if not values.counted:
            return 0
        active = changed if self.window.is_pointwise else reach_window(changed, self.window)
        return count(active if also is None else active | also)


class PixelLayer(Layer):
    """An operation whose result at a pixel depends on that pixel of its images, and on values of the whole frame."""

    def __init__(self, graph: Graph, operation: Operation) -> None:
        super().__init__(graph, operation)
        size = self.shape[2:]
        self.of_pixels = [index for index in self.inputs if graph.shapes[index][2:] == size]
        self.of_frames = [index for index in self.inputs if graph.shapes[index][2:] != size]

    @classmethod
    def fits(cls, graph: Graph, operation: Operation, images: list[bool]) -> bool:
        """Whether the operation is one."""
        shape = graph.shapes[operation.output]
        if not images[operation.output]:
            return False
        if operation.target in _ALONG_CHANNELS:
            known = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
            if known not in (1, -3):
                return False
        elif operation.target not in POINTWISE:
            return False
        some = False
        for index in operation.inputs:
            other = graph.shapes[index]
            if index in graph.constants:
                # Of a kind that is the same for all pixels. Vectors belong to channels in batch norm and PReLU only.
                vector = operation.target in (aten.batch_norm.default, aten.prelu.default) and len(other) == 1
                if (not vector and any(side != 1 for side in other[-2:])) or (len(other) == 4 and other[0] != 1):
                    return False
            elif not images[index] or other[0] != shape[0] or other[2:] not in (shape[2:], (1, 1)):
                return False
            else:
                some = some or other[2:] == shape[2:]
        return some

    def compute(self, values: Values) -> Tensor:
        return call(self.operation, values.get)

    def update(self, values: Values, threshold: float, dense: bool | float | None) -> int:
        masks = [mask for index in self.of_pixels if (mask := values.changed[index]) is not None]
        masks += [mask for index in self.of_frames if (mask := values.changed[index]) is not None]
        if not masks:
            return 0
        batch, _, height, width = self.shape
        active = masks[0]
        for mask in masks[1:]:
            active = active | mask
        if active.shape != (batch, height, width):
            active = active.expand(batch, height, width).contiguous()
        out = values.kept[self.output]
        assert out is not None  # images are kept
        if not values.counted:
            new = self.compute(values).permute(0, 2, 3, 1)
            values.mark(self.output, update_rows(out, new.contiguous(), active, threshold=threshold))
            return 0
        index = active.flatten().nonzero().squeeze(1)
        rows: dict[int, Tensor] = {}
        for each in self.of_pixels:
            rows[each] = self._rows(values.kept[each], index)
        for each in self.of_frames:
            # Of one stream, the same row for all pixels.
            stream = index.div(height * width, rounding_mode="floor")
            rows[each] = self._rows(values.kept[each], stream)
        new = call(self.operation, lambda each: rows[each] if each in rows else values.get(each))
        values.mark(self.output, update_rows(out, new.flatten(1).contiguous(), index, threshold=threshold))
        return len(index)

    @staticmethod
    def _rows(kept: Tensor | None, index: Tensor) -> Tensor:
        assert kept is not None  # images are kept
        return kept.view(-1, kept.shape[3]).index_select(0, index)[:, :, None, None]


class PoolLayer(Layer):
    """Max or average pooling over windows."""

    def __init__(self, graph: Graph, operation: Operation) -> None:
        super().__init__(graph, operation)
        arguments = dict(zip(("kernel_size", "stride", "padding"), operation.args[1:4]))
        rest = operation.args[4:]
        if operation.target is aten.avg_pool2d.default:
            arguments |= dict(zip(("ceil_mode", "count_include_pad", "divisor_override"), rest), kind="avg")
        else:
            arguments |= dict(zip(("dilation", "ceil_mode"), rest), kind="max")
        arguments |= operation.kwargs
        for name in ("kernel_size", "stride", "padding", "dilation"):
            if name in arguments:
                side = arguments[name]
                arguments[name] = side if isinstance(side, int) else tuple(side) * (2 // len(side)) if side else None
        arguments = {name: value for name, value in arguments.items() if value is not None}
        self.arguments: dict[str, Any] = arguments
        taps = arguments["kernel_size"]
        self.taps = taps * taps if isinstance(taps, int) else taps[0] * taps[1]

    @staticmethod
    def fits(graph: Graph, operation: Operation, images: list[bool]) -> bool:
        """Whether the operation is one."""
        target = operation.target
        pick = getattr(target, "target", None) is aten.max_pool2d_with_indices.default and target.index == 0  # type: ignore[attr-defined]
        known = pick or target in (aten.max_pool2d.default, aten.avg_pool2d.default)
        return bool(known) and images[operation.output] and images[operation.inputs[0]]

    def compute(self, values: Values) -> Tensor:
        return call(self.operation, values.get)

    def update(self, values: Values, threshold: float, dense: bool | float | None) -> int:
        changed = values.changed[self.inputs[0]]
        if changed is None:
            return 0
        x, out = values.kept[self.inputs[0]], values.kept[self.output]
        assert x is not None and out is not None  # images are kept
        done = pool_update(x, changed, out, threshold=threshold, **self.arguments)
        values.mark(self.output, done)
        return count(done) if values.counted else 0


class WholeLayer(Layer):
    """Any other operation: computed on the whole frame where anything of its inputs changed, and compared."""

    def __init__(self, graph: Graph, operation: Operation, images: list[bool], kept: bool) -> None:
        if operation.target in _VIEWS:
            operation = Operation(
                operation.name,
                _VIEWS[operation.target],
                operation.args,
                operation.kwargs,
                operation.output,
            )
        super().__init__(graph, operation)
        self.image = images[operation.output]
        self.kept = kept
        self.strided = operation.target is aten.as_strided.default
        if operation.target in (aten.linear.default, aten.addmm.default, aten.mm.default):
            self.cost = int(np.prod(self.shape)) * graph.shapes[self.inputs[0]][-1]

    def compute(self, values: Values) -> Tensor:
        if self.strided:  # names addresses of a tensor as the network lays it out
            return call(self.operation, lambda index: values.get(index).contiguous())
        return call(self.operation, values.get)

    def update(self, values: Values, threshold: float, dense: bool | float | None) -> int:
        masks = [mask for index in self.inputs if (mask := values.changed[index]) is not None]
        if not masks:
            return 0
        if not self.kept:
            values.kept[self.output] = None
            values.changed[self.output] = masks[0].new_ones(1)
            return self.positions
        new, out = self.compute(values), values.kept[self.output]
        assert out is not None  # as `kept` says
        if self.image:
            done = update_rows(out, new.permute(0, 2, 3, 1).contiguous(), None, threshold=threshold)
        elif out.is_floating_point():
            flat = out.view(len(out), -1)
            done = update_rows(flat, new.reshape(flat.shape).contiguous(), None, threshold=threshold)
        else:
            done = (new != out).reshape(len(out), -1).any(1)
            if values.fresh is not None:
                done = done | values.fresh
            out.copy_(new)
        values.mark(self.output, done)
        return self.positions


def images_of(graph: Graph) -> list[bool]:
    """Which values are images: floating [B, C, H, W] with a row for each stream."""
    batch = graph.shapes[graph.frame][0]
    return [
        index not in graph.constants and len(shape) == 4 and shape[0] == batch and dtype.is_floating_point
        for index, (shape, dtype) in enumerate(zip(graph.shapes, graph.dtypes))
    ]


def build(graph: Graph, dtype: torch.dtype, device: torch.device) -> list[Layer]:
    """A layer for each operation of a fused graph."""
    images = images_of(graph)
    batch = graph.shapes[graph.frame][0]
    layers: list[Layer] = []
    for operation in graph.operations:
        shape = graph.shapes[operation.output]
        if isinstance(operation.target, Convolution):
            layers.append(ConvolutionLayer(graph, operation, dtype, device))
        elif PoolLayer.fits(graph, operation, images):
            layers.append(PoolLayer(graph, operation))
        elif PixelLayer.fits(graph, operation, images):
            layers.append(PixelLayer(graph, operation))
        else:
            kept = len(shape) > 0 and shape[0] == batch
            layers.append(WholeLayer(graph, operation, images, kept))
    return layers
