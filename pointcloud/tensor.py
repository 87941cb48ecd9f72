"""SparseConvTensor: features at some cells of a grid."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, make_dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Proxy

from common_kernels.gather_rows import gather_rows
from common_kernels.kernel_map.reference import check_coords
from common_kernels.segment_reduce import segment_reduce
from pointcloud.coordinates import (
    Coordinates,
    Geometry,
    IndiceData,
    check_same_coordinates,
    describe,
    outside_of_graphs,
)

REDUCTIONS = ("sum", "mean", "max", "first")


class ConvAlgo(Enum):
    """spconv's names for its ways to compute. Here the device and the shapes decide, and the result is the same."""

    Native = 0
    MaskImplicitGemm = 1
    MaskSplitImplicitGemm = 2


class _Traceable(type):
    """Metaclass whose calls are nodes of a torch.fx graph. torch's own for this logs a warning at the first call."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy):
                return value.tracer.create_proxy("call_function", cls, args, kwargs)
        return super().__call__(*args, **kwargs)


class SparseConvTensor(metaclass=_Traceable):
    """Features at some cells of a batch of grids.

    Tensors with the same coordinates share one `coordinates` object and so the kernel maps found over them.
    `replace_feature`, `select_by_index`, `coalesce`, `to` and the layers return new tensors. Code for spconv may assign
    `indices`, `spatial_shape` and `batch_size`: the tensor then lies elsewhere, and its maps and keys go (unless the
    values are those of before). Rows of features and indices may differ in between; the first use says so.

    Args:
        features: [N, C].
        indices: int32 [N, 1 + D], D from 1 to 4: batch index, then one column per axis in the order of spatial_shape.
        spatial_shape: extent of the grid, D numbers.
        batch_size: number of samples; batch indices lie below it.
        indice_dict: the maps known under an `indice_key`, from an earlier tensor of the same network.
        grid, permanent_thrust_allocator, force_algo: accepted for spconv's sake; they cannot change a result.
        voxel_num, benchmark, enable_timer: only at their defaults, since what they ask for is not recorded here.

    Raises:
        ValueError: features and indices that do not fit each other or the grid's dimension. Coordinates outside of the
            grid and repeated ones are found with the first kernel map, or by `dense`.

    Example:
        >>> import torch, pointcloud
        >>> cells = torch.tensor([[0, 2, 3, 1], [0, 2, 4, 1]], dtype=torch.int32)  # batch, x, y, z
        >>> x = pointcloud.SparseConvTensor(torch.ones(2, 4), cells, spatial_shape=[8, 8, 8], batch_size=1)
        >>> x.features.shape, x.dense().shape
        (torch.Size([2, 4]), torch.Size([1, 4, 8, 8, 8]))
    """

    # spconv's code hands these on from tensor to tensor.
    grid = None
    voxel_num = None
    benchmark = False
    benchmark_record: Mapping[str, Any] = MappingProxyType({})
    thrust_allocator = None
    force_algo = None
    int8_scale = None

    # DDP and FSDP find the tensors of a module's output in its dataclass fields, and remake it from them.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]] = {
        field.name: field
        for field in fields(
            make_dataclass("Fields", ("features", "indices", "spatial_shape", "batch_size", "indice_dict"))
        )
    }

    def __init__(
        self,
        features: Tensor,
        indices: Tensor,
        spatial_shape: Sequence[int],
        batch_size: int,
        grid: Tensor | None = None,
        voxel_num: Tensor | None = None,
        indice_dict: dict[str, IndiceData] | None = None,
        benchmark: bool = False,
        permanent_thrust_allocator: bool = False,
        enable_timer: bool = False,
        force_algo: ConvAlgo | None = None,
    ) -> None:
        for name, value in (("voxel_num", voxel_num), ("benchmark", benchmark), ("enable_timer", enable_timer)):
            if value is not None and value is not False:
                raise ValueError(f"{name} is not supported: it must stay at its default, got {value!r}")
        check_algo(force_algo, "force_algo")
        self._set(features, Coordinates(indices, spatial_shape, batch_size), indice_dict)

    @classmethod
    def over(
        cls, coordinates: Coordinates, features: Tensor, indice_dict: dict[str, IndiceData] | None = None
    ) -> SparseConvTensor:
        """Features [N, C] at coordinates that exist already, with all maps found over them."""
        x = cls.__new__(cls)
        x._set(features, coordinates, indice_dict)
        return x

    @classmethod
    def holding(cls, content: Any, coordinates: Coordinates, indice_dict: dict[str, IndiceData]) -> SparseConvTensor:
        """Anything in place of the features, unchecked: pytrees of shapes, names or gradients have that form."""
        x = cls.__new__(cls)
        x._features, x._coordinates, x._assigned, x.indice_dict = content, coordinates, {}, indice_dict
        return x

    def _set(self, features: Tensor, coordinates: Coordinates, indice_dict: dict[str, IndiceData] | None) -> None:
        if not isinstance(features, Tensor):
            raise TypeError(f"features must be a tensor [N, C], got {type(features).__name__}")
        if features.ndim != 2:
            raise ValueError(f"features must be a tensor [N, C], got {describe(features)}")
        _check_fit(features, coordinates)
        self._features = features
        self._coordinates = coordinates
        self._assigned: dict[str, Any] = {}
        self.indice_dict = {} if indice_dict is None else indice_dict

    @property
    def coordinates(self) -> Coordinates:
        """Where the rows lie, with the maps found from there.

        Raises ValueError where the features have another number of rows than the indices, or lie on another device.
        """
        if self._assigned:
            parts = {name: getattr(self, name) for name in ("indices", "spatial_shape", "batch_size")}
            self._coordinates, self._assigned = Coordinates(**parts), {}
        _check_fit(self._features, self._coordinates)
        return self._coordinates

    def _assign(self, name: str, value: Any, same: bool) -> None:
        if not same or self._coordinates.modified:
            self.indice_dict = {}  # a new one: other tensors share the old
        self._assigned = {**self._assigned, name: value}

    @property
    def features(self) -> Tensor:
        """[N, C]"""
        return self._features

    @features.setter
    def features(self, value: Tensor) -> None:
        raise ValueError("features cannot be assigned: use x = x.replace_feature(features)")

    @property
    def indices(self) -> Tensor:
        """int32 [N, 1 + D], batch index first."""
        return self._assigned.get("indices", self._coordinates.indices)

    @indices.setter
    def indices(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"indices must be an int32 tensor [N, 1 + D], got {type(value).__name__}")
        old = self.indices
        self._assign("indices", value, old is value or (old.device == value.device and torch.equal(old, value)))

    @property
    def spatial_shape(self) -> list[int]:
        """Extent of the grid, one number per axis."""
        return list(self._assigned.get("spatial_shape", self._coordinates.spatial_shape))

    @spatial_shape.setter
    def spatial_shape(self, value: Sequence[int]) -> None:
        shape = [int(extent) for extent in value]
        self._assign("spatial_shape", shape, shape == self.spatial_shape)

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return int(self._assigned.get("batch_size", self._coordinates.batch_size))

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._assign("batch_size", value, int(value) == self.batch_size)

    @property
    def spatial_size(self) -> int:
        """Number of cells of one sample's grid."""
        return math.prod(self.spatial_shape)

    @property
    def sparity(self) -> float:
        """Share of the batch's cells that are active."""
        return len(self.coordinates) / self.spatial_size / self.batch_size

    def replace_feature(self, feature: Tensor) -> SparseConvTensor:
        """The same coordinates, maps and keys with other features [N, C'].

        With another number of rows, `indices` must be assigned before the result is used.
        """
        if not isinstance(feature, Tensor) or feature.ndim != 2:
            got = describe(feature) if isinstance(feature, Tensor) else type(feature).__name__
            raise ValueError(f"feature must be a tensor [N, C], got {got}")
        x = copy.copy(self)
        x._features = feature
        return x

    def shadow_copy(self) -> SparseConvTensor:
        """A new tensor of the same features, coordinates, maps and keys."""
        return self.replace_feature(self._features)

    def select_by_index(self, valid_indices: Tensor) -> SparseConvTensor:
        """The rows that a bool mask [N] or an index [M] names, without maps and keys."""
        if not isinstance(valid_indices, Tensor) or valid_indices.ndim != 1:
            raise ValueError(f"valid_indices must be a bool [N] or integer [M] tensor, got {valid_indices!r}")
        return SparseConvTensor(
            self._features[valid_indices],
            self.coordinates.indices[valid_indices],
            self.spatial_shape,
            self.batch_size,
        )

    def coalesce(self, reduce: str = "sum") -> SparseConvTensor:
        """Merge rows with the same coordinates; cells keep the order in which they first occur.

        Args:
            reduce: "sum", "mean", "max", or "first" for the features of the row that comes first.

        Returns:
            This tensor itself when no coordinate occurs twice.

        Raises:
            ValueError: an unknown reduce, or coordinates outside of the grid.
        """
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
        here = self.coordinates
        cells = Coordinates(here.indices, here.spatial_shape, here.batch_size)
        order, offsets = _equal_keys(cells)
        if len(offsets) - 1 == len(cells):
            return self
        first = order[offsets[:-1]]  # the sort is stable, so a cell's first row comes first
        by_first = torch.argsort(first)
        if reduce == "first":
            features = gather_rows(self._features, first[by_first])
        else:
            features = gather_rows(segment_reduce(gather_rows(self._features, order), offsets, reduce), by_first)
        return SparseConvTensor(features, self.indices[first[by_first]], self.spatial_shape, self.batch_size)

    def dense(self, channels_first: bool = True) -> Tensor:
        """The whole grid, zero where no row lies: [B, C, *spatial_shape], or [B, *spatial_shape, C].

        Raises ValueError for coordinates outside of the grid or repeated ones.
        """
        self.coordinates.check()
        cells = self._features.new_zeros(self.batch_size * self.spatial_size, self._features.shape[1])
        filled = cells.index_copy(0, self.coordinates.keys(), self._features)
        grid = filled.view(self.batch_size, *self.spatial_shape, self._features.shape[1])
        return grid.movedim(-1, 1).contiguous() if channels_first else grid

    @classmethod
    def from_dense(cls, x: Tensor) -> SparseConvTensor:
        """The cells of x [B, *spatial_shape, C] (channels last) at which some channel is not zero."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor [B, *spatial_shape, C], got {type(x).__name__}")
        if not 3 <= x.ndim <= 6:
            raise ValueError(f"x must be [B, *spatial_shape, C] with 1 to 4 axes, got {describe(x)}")
        active = (x != 0).any(-1).nonzero()
        return cls(x[active.unbind(1)], active.to(torch.int32), x.shape[1:-1], x.shape[0])

    def find_indice_pair(self, key: str | None) -> IndiceData | None:
        """What the `indice_key` stands for, None if it is not known."""
        return None if key is None else self.indice_dict.get(key)

    def _known(self, indice_key: str | None) -> IndiceData | None:
        known = self.find_indice_pair(indice_key)
        if known is not None and not isinstance(known, IndiceData):
            raise TypeError(
                f"indice_dict[{indice_key!r}] must be what a layer of this package put there, "
                f"got {type(known).__module__}.{type(known).__name__}"
            )
        return known

    @outside_of_graphs
    def find_map(self, geometry: Geometry, indice_key: str | None) -> IndiceData:
        """The kernel map of a layer with this geometry, found once for these coordinates.

        Raises:
            ValueError: the key stands for another map; coordinates outside of the grid, or repeated ones.
        """
        self.coordinates.check_unmodified()
        known = self._known(indice_key)
        if known is None:
            return IndiceData(self.coordinates, geometry, self.coordinates.link(geometry))
        known.source.check_unmodified()
        if known.geometry != geometry or not known.source.same_as(self.coordinates):
            raise ValueError(
                f"indice_key {indice_key!r} stands for {known}, but this layer needs {geometry} over "
                f"{self.coordinates}: give it another key, or none (maps are cached without one)"
            )
        self.coordinates.adopt(geometry, known.link)
        return IndiceData(self.coordinates, geometry, known.link)

    @outside_of_graphs
    def find_inverse(self, kernel_size: Sequence[int], indice_key: str | None) -> IndiceData:
        """The map whose outputs are this tensor's coordinates, registered under the key by an earlier layer.

        Raises:
            ValueError: the key is unknown, or stands for a map with another kernel or other outputs.
        """
        self.coordinates.check_unmodified()
        known = self._known(indice_key)
        if known is None:
            keys = ", ".join(map(repr, self.indice_dict)) or "none"
            raise ValueError(
                f"indice_key {indice_key!r} is not known: it must be that of a SparseConv or pooling layer that this "
                f"tensor passed before; known keys: {keys}"
            )
        if known.geometry.kind == "submanifold":
            raise ValueError(
                f"indice_key {indice_key!r} stands for {known}; only a SparseConv or pooling layer can be inverted"
            )
        if known.geometry.kernel_size != tuple(kernel_size):
            raise ValueError(
                f"kernel_size must be that of the layer inverted: indice_key {indice_key!r} stands for {known}, "
                f"this layer has kernel_size {list(kernel_size)}"
            )
        if not known.target.same_as(self.coordinates):
            raise ValueError(
                f"the map of indice_key {indice_key!r} leads to {known.target}, but this tensor has "
                f"{self.coordinates}, or other cells"
            )
        known.source.check_unmodified()
        return known

    def with_key(self, indice_key: str | None, data: IndiceData) -> dict[str, IndiceData]:
        """This tensor's keys and one more. A copy: branches of a network do not see each other's keys."""
        if indice_key is None or indice_key in self.indice_dict:
            return self.indice_dict
        return {**self.indice_dict, indice_key: data}

    def to(self, *args: Any, **kwargs: Any) -> SparseConvTensor:
        """The arguments of torch.Tensor.to, for the features; the indices follow to the device.

        Maps and keys stay on their device: a tensor that moves has none.
        """
        here = self.coordinates
        features = self._features.to(*args, **kwargs)
        coordinates = here.to(features.device)
        moved = coordinates is not here
        return SparseConvTensor.over(coordinates, features, None if moved else self.indice_dict)

    def cpu(self) -> SparseConvTensor:
        """The same tensor in main memory."""
        return self.to("cpu")

    def cuda(self) -> SparseConvTensor:
        """The same tensor on the current GPU."""
        return self.to("cuda")

    @property
    def is_quantized(self) -> bool:
        """Whether the features are int8 (`torch.qint8`), which no layer here takes."""
        return self._features.dtype == torch.qint8

    def q_scale(self) -> float:
        """Scale of quantized features. Raises ValueError for others."""
        if not self.is_quantized:
            raise ValueError(f"features must be quantized (torch.qint8), got {describe(self._features)}")
        return self._features.q_scale()

    def dequantize(self) -> SparseConvTensor:
        """Features as fp32 again, where they are quantized."""
        return self.replace_feature(self._features.dequantize())

    def minus(self) -> SparseConvTensor:
        """The negative."""
        return self.replace_feature(-self._features)

    def __add__(self, other: SparseConvTensor | Tensor) -> SparseConvTensor:
        """Sum of features [N, C] of tensors with the same coordinates; `sparse_add` takes different ones."""
        if isinstance(other, SparseConvTensor):
            check_same_coordinates(self.coordinates, other.coordinates)
            return self.replace_feature(self._features + other._features)
        if isinstance(other, Tensor):
            return self.replace_feature(self._features + other)
        return NotImplemented

    __radd__ = __add__

    def __repr__(self) -> str:
        x = self._features
        features, device = (describe(x), str(x.device)) if isinstance(x, Tensor) else (repr(x), "none")
        return (
            f"SparseConvTensor(features={features}, spatial_shape={self.spatial_shape}, "
            f"batch_size={self.batch_size}, device={device})"
        )


def _check_fit(features: Tensor, coordinates: Coordinates) -> None:
    if torch.compiler.is_compiling():  # a number of rows may stand for many
        torch._check(features.shape[0] == coordinates.indices.shape[0])
    elif features.shape[0] != len(coordinates):
        raise ValueError(
            f"features must have one row for each of the {len(coordinates)} rows of indices, got {describe(features)}"
        )
    if features.device != coordinates.device:
        raise ValueError(f"features and indices must be on one device, got {features.device} and {coordinates.device}")


def check_algo(algo: Any, name: str) -> None:
    """Raise ValueError for what is not one of spconv's algorithms (which cannot change a result)."""
    if algo is not None and getattr(algo, "name", None) not in ConvAlgo.__members__:
        raise ValueError(f"{name} must be None or one of {', '.join(map(str, ConvAlgo))}, got {algo!r}")


def _equal_keys(cells: Coordinates) -> tuple[Tensor, Tensor]:
    """(order [N], offsets [S + 1]): rows sorted by cell, and where each cell begins in that order."""
    check_coords(cells.indices, cells.spatial_shape, cells.batch_size)
    keys, order = torch.sort(cells.keys(), stable=True)
    begins = torch.ones(len(keys) + 1, dtype=torch.bool, device=keys.device)
    begins[1:-1] = keys[1:] != keys[:-1]
    return order, begins.nonzero().squeeze(1)
