"""Features at integer cells in the units of the finest level, and the manager that tensors of one network share."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor

from common_kernels.gather_rows import gather_rows
from common_kernels.kernel_map import KernelMap
from pointcloud.shims.lattice import Cells, find_map, floor_to
from pointcloud.shims.MinkowskiEngine.regions import Offsets
from pointcloud.shims.torch_scatter import scatter

Key = tuple[tuple[int, ...], str]


class SparseTensorQuantizationMode(Enum):
    """What becomes of rows that share a cell."""

    RANDOM_SUBSAMPLE = 0
    UNWEIGHTED_AVERAGE = 1
    UNWEIGHTED_SUM = 2
    NO_QUANTIZATION = 3
    MAX_POOL = 4


_REDUCTIONS = {"UNWEIGHTED_AVERAGE": "mean", "UNWEIGHTED_SUM": "sum", "MAX_POOL": "max"}


class CoordinateManager:
    """Coordinates by key (tensor stride, name) and the kernel maps between them. The floor rule makes coarse ones."""

    def __init__(self, D: int = 3) -> None:
        self.D = D
        self._coords: dict[Key, Tensor] = {}
        self._cells: dict[Key, Cells] = {}
        self._maps: dict[Any, KernelMap] = {}

    def add(self, coords: Tensor, stride: tuple[int, ...], name: str = "") -> Key:
        """Keep coordinates under a key of their own."""
        key, number = (stride, name), 0
        while key in self._coords:
            number += 1
            key = (stride, f"{name}-{number}")
        self._coords[key] = coords
        return key

    def coords(self, key: Key) -> Tensor:
        return self._coords[key]

    def __contains__(self, key: Key) -> bool:
        return key in self._coords

    def cells(self, key: Key) -> Cells:
        if key not in self._cells:
            self._cells[key] = Cells(self._coords[key])
        return self._cells[key]

    def strided(self, key: Key, stride: tuple[int, ...]) -> Key:
        """The key of the coordinates whose cells are `stride` times as large."""
        scale = tuple(a * b for a, b in zip(key[0], stride))
        out = (scale, key[1])
        if out not in self._coords:
            self._coords[out] = floor_to(self._coords[key], scale)
        return out

    def map(self, source: Key, target: Key, offsets: Offsets, dilation: tuple[int, ...]) -> KernelMap:
        """Tap k reads the cell `target + offsets[k] * stride * dilation`."""
        wanted = (source, target, offsets, dilation)
        if wanted not in self._maps:
            moves = self._moves(source, offsets, dilation)
            mirrored = all(a == -b for tap, other in zip(moves, reversed(moves)) for a, b in zip(tap, other))
            found = find_map(self.cells(source), self._coords[target], moves, source == target and mirrored)
            self._maps[wanted] = found
        return self._maps[wanted]

    def reached(self, source: Key, stride: tuple[int, ...], offsets: Offsets, dilation: tuple[int, ...]) -> Key:
        """The key of all cells `source + offset * stride * dilation`, of a grid of that stride."""
        coords = self._coords[source]
        moves = coords.new_tensor([[0, *move] for move in self._moves((stride, ""), offsets, dilation)])
        cells = torch.unique((coords[:, None] + moves).flatten(0, 1), dim=0)
        return self.add(cells, stride, "reached")

    def given(self, where: Any, stride: tuple[int, ...]) -> Key:
        """The key of coordinates that a layer is asked for: a tensor's, a key of this manager, or int [M, 1 + D]."""
        if isinstance(where, SparseTensor):
            if where.coordinate_manager is self:
                return where.coordinate_map_key
            return self.add(where.C, where.coordinate_map_key[0], "given")
        if isinstance(where, Tensor):
            if where.ndim != 2 or where.shape[1] != self.D + 1 or where.is_floating_point():
                raise ValueError(f"coordinates must be int [M, {self.D + 1}], got {where.dtype} {list(where.shape)}")
            return self.add(torch.unique(where.int(), dim=0), stride, "given")
        if isinstance(where, tuple) and where in self:
            return where
        raise ValueError(f"coordinates must be a SparseTensor, int [M, {self.D + 1}] or a key, got {where!r}")

    @staticmethod
    def _moves(source: Key, offsets: Offsets, dilation: tuple[int, ...]) -> list[list[int]]:
        steps = [s * d for s, d in zip(source[0], dilation)]
        return [[r * s for r, s in zip(offset, steps)] for offset in offsets]


class SparseTensor:
    """Features `F` [N, C] at coordinates `C` int32 [N, 1 + D], batch index first, multiples of the tensor stride.

    Args:
        features: [N, C].
        coordinates: int [N, 1 + D], or floating ones, whose floor is taken.
        tensor_stride: one number or D.
        coordinate_map_key, coordinate_manager: those of another tensor, instead of coordinates.
        quantization_mode: what becomes of rows that share a cell. RANDOM_SUBSAMPLE keeps the first.
        device: of the tensor; by default that of the features.

    Raises:
        ValueError: coordinates and features that do not fit each other.
    """

    def __init__(
        self,
        features: Tensor,
        coordinates: Tensor | None = None,
        tensor_stride: Any = 1,
        coordinate_map_key: Key | None = None,
        coordinate_manager: CoordinateManager | None = None,
        quantization_mode: SparseTensorQuantizationMode = SparseTensorQuantizationMode.RANDOM_SUBSAMPLE,
        device: Any = None,
    ) -> None:
        if device is not None:
            features = features.to(device)
            coordinates = None if coordinates is None else coordinates.to(device)
        if coordinate_map_key is not None:
            if coordinate_manager is None or coordinates is not None:
                raise ValueError("coordinate_map_key needs a coordinate_manager and no coordinates")
            self.coordinate_manager, self.coordinate_map_key = coordinate_manager, coordinate_map_key
        else:
            if coordinates is None or coordinates.ndim != 2:
                raise ValueError("coordinates must be int [N, 1 + D] where there is no coordinate_map_key")
            D = coordinates.shape[1] - 1
            stride = (tensor_stride,) * D if isinstance(tensor_stride, int) else tuple(tensor_stride)
            cells = (coordinates.floor() if coordinates.is_floating_point() else coordinates).int()
            if len(cells) != len(features):
                raise ValueError(f"coordinates must have a row for each of features, got {len(cells)}, {len(features)}")
            features, cells = _quantized(features, cells, quantization_mode)
            self.coordinate_manager = coordinate_manager or CoordinateManager(D)
            self.coordinate_map_key = self.coordinate_manager.add(cells, stride)
        self._F = features

    @property
    def F(self) -> Tensor:
        return self._F

    @property
    def features(self) -> Tensor:
        return self._F

    @property
    def C(self) -> Tensor:
        return self.coordinate_manager.coords(self.coordinate_map_key)

    @property
    def coordinates(self) -> Tensor:
        return self.C

    @property
    def tensor_stride(self) -> list[int]:
        return list(self.coordinate_map_key[0])

    @property
    def D(self) -> int:
        return len(self.coordinate_map_key[0])

    @property
    def shape(self) -> torch.Size:
        return self._F.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._F.dtype

    @property
    def device(self) -> torch.device:
        return self._F.device

    def size(self) -> torch.Size:
        return self._F.size()

    def __len__(self) -> int:
        return len(self._F)

    @property
    def quantization_mode(self) -> SparseTensorQuantizationMode:
        """How cells that repeat were treated; there are none in a tensor."""
        return SparseTensorQuantizationMode.NO_QUANTIZATION

    def dense(
        self, shape: Any = None, min_coordinate: Tensor | None = None, contract_stride: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(values [B, C, *cells], the first cell int [D], the stride int [D]) on a dense grid, zeros where no row is.

        Args:
            shape: [B, C, *cells], by default what holds all rows.
            min_coordinate: int [D], the first cell, by default the smallest one.
            contract_stride: one cell of the grid for each multiple of the tensor stride.

        Raises:
            ValueError: a row lies outside of the shape, or before the first cell.
        """
        cells, stride = self.C[:, 1:].long(), self.C.new_tensor(self.tensor_stride)
        if min_coordinate is not None:
            first = torch.as_tensor(min_coordinate, device=self.device).reshape(-1).long()
        else:
            first = cells.amin(0) if len(cells) else cells.new_zeros(self.D)
        step = stride.long() if contract_stride else torch.ones_like(stride).long()
        if min_coordinate is not None and bool((first % step).any()):
            raise ValueError(f"min_coordinate must be a multiple of the tensor stride, got {first.tolist()}")
        place = torch.div(cells - first, step, rounding_mode="floor")
        batch = self.C[:, 0].long()
        if shape is None:
            extent = (place.amax(0) + 1).tolist() if len(place) else [0] * self.D
            shape = [int(batch.max()) + 1 if len(batch) else 0, self._F.shape[1], *extent]
        limits = place.new_tensor([shape[0], *shape[2:]])
        rows = torch.cat([batch[:, None], place], 1)
        if bool(((rows < 0) | (rows >= limits)).any()) or shape[1] != self._F.shape[1]:
            raise ValueError(f"shape must be [B, {self._F.shape[1]}, *cells] that hold all rows, got {list(shape)}")
        out = self._F.new_zeros(shape[0], *shape[2:], shape[1]).index_put(tuple(rows.unbind(1)), self._F)
        return out.movedim(-1, 1), first.int(), stride.int()

    @property
    def decomposed_features(self) -> list[Tensor]:
        """The features of each sample."""
        batch = self.C[:, 0]
        return [self._F[batch == sample] for sample in range(int(batch.max()) + 1 if len(batch) else 0)]

    @property
    def decomposed_coordinates(self) -> list[Tensor]:
        """The coordinates of each sample, without the batch index."""
        batch = self.C[:, 0]
        return [self.C[batch == sample, 1:] for sample in range(int(batch.max()) + 1 if len(batch) else 0)]

    def at(self, features: Tensor, key: Key | None = None) -> SparseTensor:
        """Other features, at these coordinates or at those of another key of the same manager."""
        return SparseTensor(
            features,
            coordinate_map_key=self.coordinate_map_key if key is None else key,
            coordinate_manager=self.coordinate_manager,
        )

    def slice(self, field: TensorField) -> TensorField:
        """For every point of a field the features of its cell, 0 where there is none."""
        scale = torch.tensor([1, *self.tensor_stride], device=self.device)
        cells = torch.div(field.C.floor().int(), scale, rounding_mode="floor") * scale
        rows = self.coordinate_manager.cells(self.coordinate_map_key).rows(cells)
        return field.at(gather_rows(self._F, rows))

    def cat_slice(self, field: TensorField) -> TensorField:
        """The features of each point's cell, and beside them its own."""
        return field.at(torch.cat([self.slice(field).F, field.F], 1))

    def __add__(self, other: Any) -> SparseTensor:
        """The sum, over the union of the cells where they differ."""
        return self._combine(other, 1)

    def __sub__(self, other: Any) -> SparseTensor:
        return self._combine(other, -1)

    def __mul__(self, other: Any) -> SparseTensor:
        if isinstance(other, SparseTensor):
            if not same_cells(self, other):
                raise ValueError("* needs tensors at the same coordinates in the same order")
            other = other.F
        return self.at(self._F * other)

    def _combine(self, other: Any, sign: int) -> SparseTensor:
        if not isinstance(other, SparseTensor):
            return self.at(self._F + sign * other)
        if same_cells(self, other):
            return self.at(self._F + sign * other.F)
        return union([self, other.at(sign * other.F)])


class TensorField:
    """Features `F` [N, C] of points at floating coordinates `C` [N, 1 + D], batch index first.

    Args:
        features: [N, C].
        coordinates: [N, 1 + D].
        quantization_mode: what `sparse` makes of points that share a cell.
        device: of the field; by default that of the features.
    """

    def __init__(
        self,
        features: Tensor,
        coordinates: Tensor,
        quantization_mode: SparseTensorQuantizationMode = SparseTensorQuantizationMode.UNWEIGHTED_AVERAGE,
        device: Any = None,
    ) -> None:
        if len(coordinates) != len(features):
            raise ValueError(f"coordinates must have {len(features)} rows like features, got {len(coordinates)}")
        self.F = features if device is None else features.to(device)
        self.C = (coordinates if device is None else coordinates.to(device)).float()
        self.quantization_mode = quantization_mode

    @property
    def features(self) -> Tensor:
        return self.F

    @property
    def coordinates(self) -> Tensor:
        return self.C

    def __len__(self) -> int:
        return len(self.F)

    def at(self, features: Tensor) -> TensorField:
        """Other features of the same points."""
        return TensorField(features, self.C, self.quantization_mode)

    def sparse(self) -> SparseTensor:
        """A row for each cell that holds a point."""
        return SparseTensor(self.F, self.C, quantization_mode=self.quantization_mode)


def same_cells(a: SparseTensor, b: SparseTensor) -> bool:
    """Whether both lie at the same coordinates in the same order."""
    if a.coordinate_manager is b.coordinate_manager and a.coordinate_map_key == b.coordinate_map_key:
        return True
    return a.tensor_stride == b.tensor_stride and torch.equal(a.C, b.C)


def union(inputs: list[SparseTensor]) -> SparseTensor:
    """The sum over the union of the cells of all."""
    first = inputs[0]
    if any(each.tensor_stride != first.tensor_stride for each in inputs):
        raise ValueError(f"tensors must have the same stride, got {[each.tensor_stride for each in inputs]}")
    coords, row = torch.unique(torch.cat([each.C for each in inputs]), dim=0, return_inverse=True)
    features = scatter(torch.cat([each.F for each in inputs]), row, 0, dim_size=len(coords))
    return first.at(features, first.coordinate_manager.add(coords, first.coordinate_map_key[0], "union"))


def _quantized(features: Tensor, cells: Tensor, mode: SparseTensorQuantizationMode) -> tuple[Tensor, Tensor]:
    """One row for each cell, in the order of first rows."""
    first = Cells(cells).rows(cells).long()
    kept, row = torch.unique(first, return_inverse=True)
    if len(kept) == len(cells):
        return features, cells
    if mode is SparseTensorQuantizationMode.NO_QUANTIZATION:
        raise ValueError(f"coordinates must be unique with NO_QUANTIZATION, got {len(kept)} cells of {len(cells)} rows")
    if mode is SparseTensorQuantizationMode.RANDOM_SUBSAMPLE:
        return features[kept], cells[kept]
    return scatter(features, row, 0, dim_size=len(kept), reduce=_REDUCTIONS[mode.name]), cells[kept]
