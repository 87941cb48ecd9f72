"""The pairs of a kernel map, brought up to date where rows vanished and appeared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common_kernels.kernel_map import KernelMap, kernel_map
from common_kernels.threads import parallel_for
from pointcloud.coordinates import Geometry
from pointcloud.stream.rows import Rows

_GRAIN = 2048  # rows


class Pairs:
    """The pairs of a map of one geometry from the rows of one level to those of another (or the same).

    Attributes:
        inputs, outputs: the levels; the same one for a submanifold map.
        count: number of pairs.
        touched: places of the output rows that gained or lost an input in this frame, int64; None for all rows.
        frame: in which the pairs were last brought up to date.
    """

    def __init__(self, inputs: Rows, geometry: Geometry, shape: Sequence[int], frame: int) -> None:
        kind, kernel, stride, padding, dilation, output_padding = geometry
        found = kernel_map(
            inputs.indices,
            shape,
            kernel,
            stride,
            padding,
            dilation,
            batch_size=inputs.batch_size,
            kind=kind,
            output_padding=output_padding,
        )
        self.inputs = inputs
        self._before = inputs.indices  # as they were when the map was found
        self.geometry = geometry
        same = kind == "submanifold"
        self.outputs = inputs if same else Rows(found.coords, found.shape, inputs.batch_size)
        self.count = int((found.table >= 0).sum())
        self.touched: Tensor | None = None
        self.frame = frame
        # The maps of all rows, there and back, where they were asked for or are as they were found.
        self._whole: dict[bool, KernelMap] = {False: found}
        # One row per output row with its inputs, one per input row with its outputs; from the first change on.
        self._of_outputs = self._of_inputs = found.table[:, :0]
        self._has_tables = False
        self._taps = np.array(list(itertools.product(*map(range, kernel))), np.int64)

    def __len__(self) -> int:
        return math.prod(self.geometry.kernel_size)

    def update(self, frame: int) -> None:
        """Follow the change of the input rows; of a map to another level, that level follows as well."""
        self.frame = frame
        change = self.inputs.change
        assert change is not None
        if not len(change.gone) and not len(change.new):
            self.touched = change.new
            if self.outputs is not self.inputs:
                self.outputs.become(change.gone, self.outputs.keys[:0])
            return
        self._make_tables()
        self._whole = {}
        if self.outputs is self.inputs:
            self._update_same()
        else:
            self._update_other()

    def _make_tables(self) -> None:
        if not self._has_tables:
            found, self._has_tables = self._whole[False], True
            self._of_outputs = found.table.t().contiguous()
            self._of_inputs = found.transpose(self._before, self.inputs.shape).table.t().contiguous()

    def _update_same(self) -> None:
        from pointcloud.stream import kernels

        change, n = self.inputs.change, len(self.inputs)
        assert change is not None
        outs, ins = self._of_outputs.numpy(), self._of_inputs.numpy()
        touched, ignored = np.zeros(change.before, np.bool_), np.zeros(max(change.before, n), np.bool_)
        gone, source, target, new = (x.numpy() for x in (change.gone, change.source, change.target, change.new))
        self.count -= kernels.unlink(ins, outs, gone, touched)
        self.count -= kernels.unlink(outs, ins, gone, ignored)
        touched[gone] = False
        kernels.move(outs, ins, source, target)
        kernels.move(ins, outs, source, target)
        marks = np.zeros(n, np.bool_)
        marks[change.follow(torch.from_numpy(touched).nonzero().squeeze(1)).numpy()] = True
        self._of_outputs, self._of_inputs = _resized(self._of_outputs, n), _resized(self._of_inputs, n)
        outs, ins = self._of_outputs.numpy(), self._of_inputs.numpy()
        indices = self.inputs.indices[change.new]
        found = self._find(indices, inverse=False)[0].numpy()
        self.count += kernels.link(ins, outs, new, found, marks)
        if all(k % 2 for k in self.geometry.kernel_size):
            found = found[:, ::-1]
        else:
            found = self._find(indices, inverse=True)[0].numpy()
        self.count += kernels.link(outs, ins, new, np.ascontiguousarray(found), ignored)
        self.touched = torch.from_numpy(marks).nonzero().squeeze(1)

    def _update_other(self) -> None:
        from pointcloud.stream import kernels

        change, n = self.inputs.change, len(self.inputs)
        assert change is not None
        touched = np.zeros(len(self.outputs), np.bool_)
        outs, ins = self._of_outputs.numpy(), self._of_inputs.numpy()
        self.count -= kernels.unlink(ins, outs, change.gone.numpy(), touched)
        kernels.move(ins, outs, change.source.numpy(), change.target.numpy())
        self._of_inputs = _resized(self._of_inputs, n)
        ins, new = self._of_inputs.numpy(), change.new.numpy()
        found, keys = self._find(self.inputs.indices[change.new], inverse=False)
        self.count += kernels.link(ins, outs, new, found.numpy(), touched)
        missing = (found < 0) & (keys >= 0)
        # Every input of an output that appears has appeared as well, or the output would have been there.
        appeared = torch.unique(keys[missing])
        marked = torch.from_numpy(touched).nonzero().squeeze(1)
        empty = np.empty(len(marked), np.bool_)
        kernels.is_empty(outs, marked.numpy(), empty)
        gone, left = marked[torch.from_numpy(empty)], marked[torch.from_numpy(~empty)]
        after = self.outputs.become(gone, appeared)
        kernels.move(outs, ins, after.source.numpy(), after.target.numpy())
        self._of_outputs = _resized(self._of_outputs, len(self.outputs))
        found = torch.full_like(found, -1)
        found[missing] = self.outputs.find(keys[missing])
        marks = np.zeros(len(self.outputs), np.bool_)
        self.count += kernels.link(ins, self._of_outputs.numpy(), new, found.numpy(), marks)
        self.touched = torch.cat([after.follow(left), after.new])

    def _find(self, indices: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The outputs (of a submanifold map, where `inverse`, the inputs) that rows of these coordinates have through
        each tap: their places, -1 for none, and keys, -1 outside of the grid; each int64 [rows, K]."""
        from pointcloud.stream import kernels

        kind, kernel, stride, padding, dilation, _ = self.geometry
        taps, one = self._taps * np.array(dilation), np.ones(len(kernel), np.int64)
        factor = divisor = one
        if kind == "submanifold":
            shifts = np.array([k // 2 * d for k, d in zip(kernel, dilation)]) - taps
            shifts = -shifts if inverse else shifts
        elif kind == "strided":
            shifts, divisor = np.array(padding) - taps, np.array(stride)
        else:
            shifts, factor = taps - np.array(padding), np.array(stride)
        extents = np.array([self.outputs.batch_size, *self.outputs.shape])
        keys = torch.empty(len(indices), len(taps), dtype=torch.int64)
        kernels.reached(indices.numpy(), factor, shifts, divisor, extents, keys.numpy())
        return self.outputs.find(keys.flatten()).view(keys.shape), keys

    def reach(self, changed: Tensor, marks: np.ndarray, inverse: bool) -> None:
        """Mark the outputs (of the inverse layer, the inputs) that read one of these rows, int64."""
        from pointcloud.stream import kernels

        self._make_tables()
        table = self._of_outputs if inverse else self._of_inputs
        kernels.spread(table.numpy(), changed.numpy(), marks)

    def part(self, rows: Tensor | None, inverse: bool) -> KernelMap:
        """The map of these output rows alone, int64; of all for None, found once for all layers of a frame."""
        if rows is not None:
            return self._part(rows, inverse)
        if inverse not in self._whole and not self._has_tables:
            self._whole[True] = self._whole[False].transpose(self._before, self.inputs.shape)
        elif inverse not in self._whole:
            n = len(self.inputs if inverse else self.outputs)
            self._whole[inverse] = self._part(torch.arange(n), inverse)
        return self._whole[inverse]

    def _part(self, rows: Tensor, inverse: bool) -> KernelMap:
        from pointcloud.stream import kernels

        self._make_tables()
        table, inputs, outputs = self._of_outputs, self.inputs, self.outputs
        if inverse:
            table, inputs, outputs = self._of_inputs, outputs, inputs
        out = torch.empty(table.shape[1], len(rows), dtype=torch.int32)
        parallel_for(kernels.columns, len(rows), _GRAIN, table.numpy(), rows.numpy(), out.numpy())
        # Nothing that multiplies reads coordinates.
        return KernelMap(out, len(inputs), outputs.indices[:0], outputs.shape)


def _resized(table: Tensor, n: int) -> Tensor:
    """A table of at least n rows; further ones are empty."""
    if n <= len(table):
        return table
    return torch.cat([table, table.new_full((n - len(table) + n // 16, table.shape[1]), -1)])
