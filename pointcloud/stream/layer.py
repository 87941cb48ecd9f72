"""A convolution or linear layer of a stream: it computes the rows that something changed, and keeps the others."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common_kernels import KernelMap
from pointcloud.acceleration.layer import DeferredLayer
from pointcloud.acceleration.linear import DeferredLinear
from pointcloud.acceleration.steps import Norm
from pointcloud.stream.followed import FollowedMap
from pointcloud.stream.places import PlacedFeatures
from pointcloud.stream.rows import Rows
from pointcloud.stream.state import Scene

# A map of most rows costs more than the products of the others: layers share that of all rows.
WHOLE_SHARE = 0.6

_running = threading.local()


class running:
    """Within the block, layers of this thread follow the scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __enter__(self) -> None:
        self.before = getattr(_running, "scene", None)
        _running.scene = self.scene

    def __exit__(self, *_: object) -> None:
        _running.scene = self.before


class _Following(DeferredLayer):
    """What convolutions and linear layers have in common."""

    def multiply(
        self,
        conv: Any,
        sources: tuple[Tensor, ...],
        map: KernelMap | None,
        norms: tuple[Norm, ...],
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        """Features [M, out_channels]: of the rows in their places where they can be followed."""
        scene: Scene | None = getattr(_running, "scene", None)
        levels = None if scene is None else _levels(sources, map)
        if scene is None or levels is None:
            sources = tuple(_ordinary(x) for x in sources)
            residual = None if residual is None else _ordinary(residual)
            if scene is not None:
                rows = len(sources[0]) if map is None else map.n_out
                pairs = rows if map is None else int(map.pairs_per_tap.sum())
                scene.note(self.name, rows, rows, pairs, pairs, _size(conv, map))
            return super().multiply(conv, sources, map, norms, residual, relu)
        inputs, outputs = levels
        key = scene.call(self.name)
        placed = [_placed(scene, (*key, index), x, inputs) for index, x in enumerate(sources)]
        added = None if residual is None else _placed(scene, (*key, "residual"), residual, outputs)
        form = (tuple(norm.name for norm in norms), added is not None, relu, tuple(x.shape[1] for x in sources))
        kept, index = scene.kept.get(key), None
        if kept is not None and kept.follow(outputs, form, scene.frame):
            index = _affected(placed, added, map, outputs)
        known = index is not None
        if index is not None and len(index) > WHOLE_SHARE * len(outputs):
            index = None
        part = map.pairs.part(index, map.is_inverse) if isinstance(map, FollowedMap) else None
        computed = len(outputs) if index is None else len(index)
        products, all_products = computed, len(outputs)
        if isinstance(map, FollowedMap) and part is not None:
            all_products = map.pairs.count
            products = all_products if index is None else len(part.schedule[0])
        scene.note(self.name, computed, len(outputs), products, all_products, _size(conv, map))
        fresh = self._rows(conv, placed, part, norms, added, relu, index)
        if kept is None or not known:
            return scene.keep(key, outputs, form, fresh)
        assert outputs.change is not None
        return kept.update(fresh, index, outputs.change.new, scene.threshold * kept.scale)

    def _rows(
        self,
        conv: Any,
        sources: list[PlacedFeatures],
        map: KernelMap | None,
        norms: tuple[Norm, ...],
        residual: PlacedFeatures | None,
        relu: bool,
        index: Tensor | None,
    ) -> Tensor:
        """Features [M, out_channels] of the output rows at places `index` [M], or of all, by the map of these rows."""
        if index is not None and not len(index):
            return sources[0].plain().new_empty(0, conv.weight.shape[0])
        read = [x.plain() for x in sources]
        added = None if residual is None else residual.plain()
        if index is not None:
            added = None if added is None else added.index_select(0, index)
            read = [x.index_select(0, index) for x in read] if map is None else read
        return super().multiply(conv, tuple(read), map, norms, added, relu)


class StreamLayer(_Following):
    """A convolution of a stream."""


class StreamLinear(_Following, DeferredLinear):
    """A linear layer of a stream."""

    def is_served(self, epilogue: Any, sources: int) -> bool:
        """Every product of fewer rows is a gain."""
        return True


def _size(conv: Any, map: KernelMap | None) -> int:
    """Multiplications of a pair of an input and an output row."""
    size: int = conv.weight.numel()
    return size if map is None else size // map.n_taps


def _levels(sources: tuple[Tensor, ...], map: KernelMap | None) -> tuple[Rows, Rows] | None:
    """The levels that a layer reads and writes; None where they are not followed."""
    if isinstance(map, FollowedMap):
        return map.inputs, map.outputs
    if map is not None:
        return None
    levels = [x.rows for x in sources if isinstance(x, PlacedFeatures)]
    if not levels or any(rows is not levels[0] for rows in levels):
        return None
    return levels[0], levels[0]


def _placed(scene: Scene, key: Any, x: Tensor, rows: Rows) -> PlacedFeatures:
    """Features in the places of a level's rows."""
    if isinstance(x, PlacedFeatures) and x.rows is rows and x.is_contiguous():
        return x
    return scene.place(key, _ordinary(x), rows)


def _ordinary(x: Tensor) -> Tensor:
    """Features as an ordinary tensor, in the order in which the network as a whole has the rows."""
    return x.in_order() if isinstance(x, PlacedFeatures) else x


def _affected(
    sources: list[PlacedFeatures], residual: PlacedFeatures | None, map: KernelMap | None, outputs: Rows
) -> Tensor | None:
    """Places of the output rows that something changed for, ascending; None for all."""
    change = outputs.change
    if change is None or any(x.changed is None for x in (*sources, *([] if residual is None else [residual]))):
        return None
    marks = np.zeros(len(outputs), np.bool_)
    marks[change.new.numpy()] = True
    if isinstance(map, FollowedMap):
        touched = map.pairs.touched
        if touched is None:
            return None
        # Of an inverse layer only new rows gain an input: a coarse row comes and goes with the rows that read it.
        if not map.is_inverse:
            marks[touched.numpy()] = True
    if residual is not None and residual.changed is not None:
        marks[residual.changed.numpy()] = True
    for x in sources:
        assert x.changed is not None
        if isinstance(map, FollowedMap):
            map.pairs.reach(x.changed, marks, map.is_inverse)
        else:
            marks[x.changed.numpy()] = True
    return torch.from_numpy(marks).nonzero().squeeze(1)
