"""Coordinates that sparse tensors share, and the kernel maps found over them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.kernel_map import KernelMap, check_key_range, kernel_map, per_axis
from common_kernels.kernel_map.reference import check_coords, check_unique, ravel

Result = TypeVar("Result")


def outside_of_graphs(function: Callable[..., Result]) -> Callable[..., Result]:
    """Leave a search whose result is kept out of torch.compile's graphs: it would gain nothing and retrace often.

    torch.compiler.disable as a decorator would import the compiler, which takes a second, with this package.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Result:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args)
        return function(*args)

    return call


class Geometry(NamedTuple):
    """What a kernel map depends on besides the coordinates; one number per axis. See `common_kernels.kernel_map`."""

    kind: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]

    def __str__(self) -> str:
        parts = [f"{name} {list(value)}" for name, value in self._asdict().items() if name != "kind"]
        return f"a {self.kind} map with {', '.join(parts)}"


@dataclass
class Link:
    """A kernel map, the coordinates of its output rows, and (once asked for) its inverse.

    `target` is None for a submanifold map, whose outputs are its inputs: a coordinate set holds its links, so a link
    that held its own coordinate set would keep both alive until the cycle collector runs.
    """

    map: KernelMap
    target: Coordinates | None
    _inverse: KernelMap | None = None

    def inverse(self, source: Coordinates) -> KernelMap:
        """The map back to `source`, the coordinates that this link starts from."""
        if self._inverse is None:
            with torch.inference_mode(False):
                self._inverse = self.map.transpose(source.indices, source.spatial_shape)
        return self._inverse


class Coordinates:
    """Where the rows of sparse tensors lie, and the maps already found from here.

    Tensors with the same coordinates share one such object, so that a map is searched once, whichever layer asks.

    Args:
        indices: int32 or int64 [N, 1 + D], D from 1 to 4, batch index first; int64 is converted to int32.
        spatial_shape: extent of the grid, D numbers.
        batch_size: number of samples.

    Raises:
        TypeError: indices that are no tensor.
        ValueError: a wrong dtype or shape, or a grid beyond 64-bit keys. Coordinates outside of the grid and repeated
            ones are found with the first map, or by `check`.
    """

    def __init__(self, indices: Tensor, spatial_shape: Sequence[int], batch_size: int) -> None:
        if not isinstance(indices, Tensor):
            raise TypeError(f"indices must be an int32 tensor [N, 1 + D], got {type(indices).__name__}")
        if indices.dtype not in (torch.int32, torch.int64) or indices.ndim != 2 or not 2 <= indices.shape[1] <= 5:
            raise ValueError(f"indices must be int32 [N, 1 + D] with D from 1 to 4, got {describe(indices)}")
        ndim = indices.shape[1] - 1
        if not isinstance(spatial_shape, Iterable):
            raise ValueError(f"spatial_shape must be {ndim} integers, one per axis, got {spatial_shape!r}")
        shape = [_as_int(extent, "spatial_shape") for extent in spatial_shape]
        if len(shape) != ndim:
            raise ValueError(f"spatial_shape must have {ndim} numbers for indices {describe(indices)}, got {shape}")
        self.spatial_shape = tuple(per_axis(shape, ndim, "spatial_shape", minimum=1))
        self.batch_size = _as_int(batch_size, "batch_size")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        check_key_range(self.spatial_shape, self.batch_size)
        self.indices = _to_int32(indices)
        self._version = _version(self.indices)
        self._links: dict[Geometry, Link] = {}
        self._kept: dict[Hashable, Any] = {}
        self._kept_over: WeakKeyDictionary[Coordinates, dict[Hashable, Any]] = WeakKeyDictionary()
        self._checked = False

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __str__(self) -> str:
        return f"{len(self)} coordinates in grid {list(self.spatial_shape)}, batch_size {self.batch_size}"

    def link(self, geometry: Geometry) -> Link:
        """The map of that geometry from these coordinates, found once.

        Raises ValueError for a coordinate outside of the grid, and for one that occurs twice.
        """
        self.check_unmodified()
        found = self._links.get(geometry)
        if found is None:
            followed = getattr(self.indices, "followed", None)  # what a stream knows of these very rows
            found = None if followed is None else followed.link(geometry, self.spatial_shape)
            found = self._links[geometry] = self._search(geometry) if found is None else found
        return found

    def adopt(self, geometry: Geometry, link: Link) -> None:
        """Use a link that equal coordinates already found."""
        self._links.setdefault(geometry, link)

    def kept(self, key: Hashable, find: Callable[[], Result], over: Coordinates | None = None) -> Result:
        """What `find` found over these coordinates (and those of `over`, as long as these exist), found once."""
        self.check_unmodified()
        if over is not None:
            over.check_unmodified()
        store = self._kept if over is None else self._kept_over.setdefault(over, {})
        if key not in store:
            # What is found in inference mode may serve training later, so it must not consist of inference tensors.
            with torch.inference_mode(False):
                store[key] = find()
        found: Result = store[key]
        return found

    def _search(self, geometry: Geometry) -> Link:
        kind, kernel, stride, padding, dilation, output_padding = geometry
        # A map found in inference mode may serve training later, so it must not consist of inference tensors.
        with torch.inference_mode(False):
            found = kernel_map(
                self.indices,
                self.spatial_shape,
                kernel,
                stride,
                padding,
                dilation,
                batch_size=self.batch_size,
                kind=kind,
                output_padding=output_padding,
            )
            self._checked = True
            if kind == "submanifold":
                return Link(found, None)
            target = Coordinates(found.coords, found.shape, self.batch_size)
            target._checked = True
            return Link(found, target)

    @outside_of_graphs
    def check(self) -> None:
        """Raise ValueError for a coordinate outside of the grid, and for one that occurs twice."""
        self.check_unmodified()
        if not self._checked:
            check_coords(self.indices, self.spatial_shape, self.batch_size)
            check_unique(self.keys())
            self._checked = True

    @property
    def device(self) -> torch.device:
        """Where the indices lie."""
        return self.indices.device

    def keys(self) -> Tensor:
        """Position of each row in the batch of grids, int64 [N]."""
        return ravel(self.indices, self.spatial_shape)

    def same_as(self, other: Coordinates) -> bool:
        """Whether both name the same cells of the same grid in the same order."""
        if self is other:
            return True
        if (self.spatial_shape, self.batch_size, len(self)) != (other.spatial_shape, other.batch_size, len(other)):
            return False
        if self.indices is other.indices:
            return True
        return self.indices.device == other.indices.device and torch.equal(self.indices, other.indices)

    def to(self, device: torch.device) -> Coordinates:
        """The same coordinates on another device, without maps; this object when they are there already."""
        if self.indices.device == device:
            return self
        return Coordinates(self.indices.to(device), self.spatial_shape, self.batch_size)

    @property
    def modified(self) -> bool:
        """Whether `indices` were written to since."""
        return _version(self.indices) != self._version

    def check_unmodified(self) -> None:
        """Raise ValueError where `indices` were written to since: maps and keys would silently be those of before."""
        if self.modified:
            raise ValueError(
                "indices were modified in place after the sparse tensor was made, so the maps found over them may be "
                "wrong: make a new SparseConvTensor from the new indices"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept_over"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kept_over = WeakKeyDictionary()
        self._version = _version(self.indices)  # a copy starts to count anew


class _Absent:
    """An attribute of spconv's IndiceData that does not exist here."""

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        if owner is None:
            return self
        raise AttributeError(
            "the masks of spconv's IndiceData (pair_mask_*_splits, mask_argsort_*_splits, masks) do not exist here: no "
            "layer sorts by masks of taps"
        )


@dataclass(frozen=True, eq=False)
class IndiceData:
    """What an `indice_key` stands for: a map of this geometry from `source` to `target`.

    The properties are spconv's attributes of these names, in its layouts, found when they are read. For code that reads
    them; layers read the map itself.
    """

    source: Coordinates
    geometry: Geometry
    link: Link

    # spconv's export to TensorRT sets these; nothing reads them.
    voxel_num = None
    in_voxel_num = None
    out_voxel_num = None

    @property
    def target(self) -> Coordinates:
        return self.source if self.link.target is None else self.link.target

    @property
    def is_subm(self) -> bool:
        """Whether the outputs are the inputs."""
        return self.geometry.kind == "submanifold"

    @property
    def ksize(self) -> list[int]:
        """Taps per axis."""
        return list(self.geometry.kernel_size)

    @property
    def stride(self) -> list[int]:
        return list(self.geometry.stride)

    @property
    def padding(self) -> list[int]:
        """0 for a submanifold map, whose padding has no meaning."""
        return list(self.geometry.padding)

    @property
    def dilation(self) -> list[int]:
        return list(self.geometry.dilation)

    @property
    def indices(self) -> Tensor:
        """Coordinates of the input rows, int32 [N, 1 + D]."""
        return self.source.indices

    @property
    def out_indices(self) -> Tensor:
        """Coordinates of the output rows, int32 [M, 1 + D]."""
        return self.target.indices

    @property
    def spatial_shape(self) -> list[int]:
        """Extent of the input grid."""
        return list(self.source.spatial_shape)

    @property
    def out_spatial_shape(self) -> list[int]:
        """Extent of the output grid."""
        return list(self.target.spatial_shape)

    @property
    def pair_fwd(self) -> Tensor:
        """Input row for each tap and output row, -1 for none: int32 [K, M]."""
        return self.link.map.table

    @property
    def pair_bwd(self) -> Tensor:
        """Output row for each tap and input row, -1 for none: int32 [K, N]."""
        return self.link.inverse(self.source).table

    @property
    def indice_pairs(self) -> Tensor:
        """Input rows (first) and output rows of each tap's pairs, then -1: int32 [2, K, N]."""
        table = self.pair_bwd
        none, order = torch.sort((table < 0).to(torch.int8), dim=1, stable=True)
        pairs = torch.stack([order.to(torch.int32), table.gather(1, order)])
        return pairs.masked_fill(none.bool(), -1)

    @property
    def indice_pair_num(self) -> Tensor:
        """Pairs of each tap, int32 [K].

        As in spconv, 0 from the centre on where the map is symmetric (submanifold, odd kernel): these taps have the
        pairs of their mirror images, and the centre has every row.
        """
        count = self.link.map.pairs_per_tap.to(torch.int32)
        if self.link.map.symmetric:
            count[len(count) // 2 :] = 0
        return count

    pair_mask_fwd_splits = pair_mask_bwd_splits = masks = _Absent()
    mask_argsort_fwd_splits = mask_argsort_bwd_splits = _Absent()

    def __str__(self) -> str:
        return f"{self.geometry} over {self.source}"


def check_same_coordinates(a: Coordinates, b: Coordinates) -> None:
    """Raise ValueError where two tensors do not name the same cells in the same order."""
    if not a.same_as(b):
        other = ", but other cells" if str(a) == str(b) else ""
        raise ValueError(
            f"the tensors must have the same coordinates in the same order, got {a} and {b}{other}; "
            "sparse_add adds over the union"
        )


def _as_int(value: Any, name: str) -> int:
    try:
        return int(value.__index__())
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{name} must be made of integers, got {value!r}") from error


def _to_int32(indices: Tensor) -> Tensor:
    if indices.dtype == torch.int64:
        limits = torch.iinfo(torch.int32)
        if len(indices) and not (limits.min <= int(indices.min()) and int(indices.max()) <= limits.max):
            raise ValueError(f"indices must fit int32, got values from {int(indices.min())} to {int(indices.max())}")
    return indices.to(torch.int32)


def _version(indices: Tensor) -> int:
    """How often the tensor was modified in place; inference tensors do not count."""
    return 0 if torch.compiler.is_compiling() or indices.is_inference() else indices._version
