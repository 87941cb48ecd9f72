"""What each layer of a network costs here: as a whole, and by its changed positions. Measured once for a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common_kernels.row_update import update_rows
from common_models.timing import best_times
from video.delta.layers import ConvolutionLayer, Layer, Values
from video.delta.plan import Plan

# The share of a map that is computed besides the whole of it, to see what a changed position costs.
_SMALL = 1 / 16
# Side of the blocks of a frame that are changed, every fourth one, to see what a frame costs besides its layers.
_BLOCK = 8
# A share of positions that no layer reaches.
NEVER = 2.0


@dataclass(frozen=True)
class Costs:
    """Seconds; tuples by layer in order.

    Attributes:
        whole: for all layers as a whole.
        start: for a layer of which anything changed.
        position: for each position that is computed, besides.
        dense_from: the share of positions from which on a convolution is better computed as a whole and compared.
        positions: of each layer.
        frame: for the comparison of a frame.
        scattered: how many times as long layers in turn, whose changes are scattered, take as they do one by one.
    """

    whole: float
    start: tuple[float, ...]
    position: tuple[float, ...]
    dense_from: tuple[float, ...]
    positions: tuple[int, ...]
    frame: float
    scattered: float = 1.0

    def effort(self, computed: Sequence[int]) -> float:
        """What computing so many positions of each layer costs, as a share of computing all layers as a whole."""
        return (self.frame + self.scattered * self.layers(computed)) / self.whole

    def layers(self, computed: Sequence[int]) -> float:
        """Seconds for computing so many positions of each layer one by one."""
        seconds = 0.0
        for start, each, most, positions, count in zip(
            self.start, self.position, self.dense_from, self.positions, computed
        ):
            if count:
                seconds += start + each * min(count, most * positions)
        return seconds


def measure(plan: Plan, x: Tensor, slots: Mapping[str, Tensor]) -> Costs:
    """Time the layers of a plan on a frame x [B, H, W, C] on the CPU, some ten times as long as the frame takes."""
    layers, x = plan.layers, x.clone()
    dense = plan.dense(x, slots, keep=True)

    def whole() -> float:
        return best_times([plan], lambda plan: plan.dense(x, slots, keep=False))[0]

    before = whole()
    tensors = {**plan.keep(dense, x), **slots}
    values = plan.values(tensors, (), counted=True)
    counts: dict[int, int] = {}

    def update(layer: Layer, as_whole: bool) -> None:
        counts[layer.output] = layer.update(values, 0.0, as_whole)

    def change(layer: Layer, share: float) -> None:
        for index in layer.inputs:
            values.changed[index] = _changed(values, index, share)
        _move(values.kept[layer.output])

    low = best_times(layers, lambda layer: update(layer, False), lambda layer: change(layer, _SMALL))
    few = dict(counts)
    high = best_times(layers, lambda layer: update(layer, False), lambda layer: change(layer, 1.0))
    convolutions = [layer for layer in layers if isinstance(layer, ConvolutionLayer)]
    wholly = best_times(convolutions, lambda layer: update(layer, True), lambda layer: change(layer, 1.0))
    as_whole = dict(zip(convolutions, wholly))
    start, position, dense_from = [], [], []
    for layer, little, much in zip(layers, low, high):
        more = counts[layer.output] - few[layer.output]
        each = max(much - little, 0.0) / more if more > 0 else 0.0
        first = max(little - each * few[layer.output], 0.0) if more > 0 else much
        share = NEVER
        if each and isinstance(layer, ConvolutionLayer):
            share = max(as_whole[layer] - first, 0.0) / (each * layer.positions)
        start.append(first)
        position.append(each)
        dense_from.append(share if share < 1 else NEVER)
    frame = x.clone()
    overhead = sum(
        best_times([lambda: update_rows(frame, x)], lambda call: call(), lambda _: _move(frame))
        + best_times([lambda: plan.values(tensors, (), counted=True)], lambda call: call())
    )
    positions = tuple(layer.positions for layer in layers)
    best = min(before, whole())  # the time that matters most: others may have been busy at one end
    costs = Costs(best, tuple(start), tuple(position), tuple(dense_from), positions, overhead)
    return replace(costs, scattered=_scattered(plan, values, costs))


def _scattered(plan: Plan, values: Values, costs: Costs) -> float:
    """The factor between a frame with scattered changes and the sum of its layers by their costs."""
    frame = values.kept[plan.graph.frame]
    assert frame is not None  # the state has it
    rows, columns = (torch.arange(size) // _BLOCK for size in frame.shape[1:3])
    mask = ((rows[:, None] + 2 * columns) % 4 == 0).expand(frame.shape[:3]).contiguous()
    computed: list[int] = []

    def change(_: object) -> None:
        frame[mask] += 1
        values.changed = [None] * len(values.changed)
        values.mark(plan.graph.frame, mask)

    def update(_: object) -> None:
        computed[:] = [layer.update(values, 0.0, share) for layer, share in zip(plan.layers, costs.dense_from)]

    (seconds,) = best_times([None], update, change)
    return max(1.0, seconds / max(costs.layers(computed), 1e-9))


def _changed(values: Values, index: int, share: float) -> Tensor:
    """The upper rows of an image; any other value as a whole."""
    value = values.get(index)
    if not values.images[index]:
        return torch.ones(len(value) if value.ndim else 1, dtype=torch.bool)
    batch, _, height, width = value.shape
    changed = torch.zeros(batch, height, width, dtype=torch.bool)
    changed[:, : max(1, round(share * height))] = True
    return changed


def _move(kept: Tensor | None) -> None:
    """Make every position differ from what will be computed."""
    if kept is not None and kept.is_floating_point():
        kept.add_(1)
