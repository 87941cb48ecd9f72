"""Coordinates and kernel maps of levels that a stream follows, for layers that ask for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common_kernels.kernel_map import KernelMap
from pointcloud.coordinates import Coordinates, Geometry, Link
from pointcloud.stream.pairs import Pairs
from pointcloud.stream.rows import Rows


class Clock:
    """The number of the frame that a stream's state is in."""

    def __init__(self) -> None:
        self.frame = 0


class Followed:
    """What the indices of a tensor carry within a call: the level whose rows they are."""

    def __init__(self, rows: Rows, clock: Clock) -> None:
        self.rows = rows
        self.clock = clock

    def link(self, geometry: Geometry, shape: tuple[int, ...]) -> Link | None:
        """The map of that geometry from here; None where it must be found in another way."""
        if any(here > there for here, there in zip(self.rows.shape, shape)):
            return None  # rows may lie outside of a smaller grid
        frame = self.clock.frame
        pairs: Pairs | None = self.rows.pairs.get((geometry, shape))
        if pairs is None or pairs.frame < frame - 1 or self.rows.change is None:
            pairs = self.rows.pairs[geometry, shape] = Pairs(self.rows, geometry, shape, frame)
        elif pairs.frame < frame:
            pairs.update(frame)
        target = None
        if pairs.outputs is not self.rows:
            target = FollowedCoordinates(pairs.outputs, self.clock)
        return FollowedLink(FollowedMap(pairs, shape, inverse=False), target)


class FollowedLink(Link):
    """A link whose inverse needs no search."""

    def inverse(self, source: Coordinates) -> KernelMap:
        """The map back."""
        assert isinstance(self.map, FollowedMap)
        return self.map.turned()


class FollowedMap(KernelMap):
    """The pairs of a level, as an ordinary map found only where an operation reads its table."""

    def __init__(self, pairs: Pairs, shape: tuple[int, ...], inverse: bool) -> None:
        fields = {"pairs": pairs, "grid": shape, "is_inverse": inverse}
        self.__dict__.update(fields)

    pairs: Pairs
    grid: tuple[int, ...]
    is_inverse: bool

    @property
    def n_in(self) -> int:
        return len(self.inputs)

    @property
    def n_out(self) -> int:
        return len(self.outputs)

    @property
    def n_taps(self) -> int:
        return len(self.pairs)

    @property
    def inputs(self) -> Rows:
        """The level that the layer reads."""
        return self.pairs.outputs if self.is_inverse else self.pairs.inputs

    @property
    def outputs(self) -> Rows:
        """The level that the layer writes."""
        return self.pairs.inputs if self.is_inverse else self.pairs.outputs

    def turned(self) -> FollowedMap:
        """The map back."""
        return FollowedMap(self.pairs, self.grid, not self.is_inverse)

    def transpose(self, coords: Tensor, shape: Sequence[int]) -> KernelMap:
        """The map back."""
        return self.turned()

    def whole(self) -> KernelMap:
        """The ordinary map, of rows in the order in which the network as a whole has them."""
        found: KernelMap | None = self.__dict__.get("found")
        if found is None:
            found = self.pairs.part(None, self.is_inverse)
            place = torch.empty(self.n_in + 1, dtype=torch.int32)
            place[self.inputs.order] = torch.arange(self.n_in, dtype=torch.int32)
            place[-1] = -1
            table = place[found.table[:, self.outputs.order].long()]
            coords = self.outputs.indices[self.outputs.order]
            source = self.inputs.indices[self.inputs.order]
            found = self.__dict__["found"] = KernelMap(
                table, self.n_in, coords, self.outputs.shape, self.symmetric, source=source
            )
        return found

    @property
    def table(self) -> Tensor:
        return self.whole().table

    @property
    def coords(self) -> Tensor:
        return self.whole().coords

    @property
    def source(self) -> Tensor | None:
        return self.whole().source

    @property
    def shape(self) -> tuple[int, ...]:
        return self.outputs.shape

    @property
    def symmetric(self) -> bool:
        geometry = self.pairs.geometry
        return geometry.kind == "submanifold" and all(k % 2 for k in geometry.kernel_size)


class FollowedCoordinates(Coordinates):
    """The coordinates of a level; the indices are sorted only where something reads them."""

    def __init__(self, rows: Rows, clock: Clock) -> None:
        self.rows = rows
        self.spatial_shape = rows.shape
        self.batch_size = rows.batch_size
        self._followed = Followed(rows, clock)
        self._frame = clock.frame
        self._length = len(rows)
        self._indices: Tensor | None = None
        self._links = {}
        self._kept = {}
        self.__setstate__({})
        self._checked = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        from weakref import WeakKeyDictionary

        self.__dict__.update(state)
        self._kept_over = WeakKeyDictionary()
        self._version = 0

    @property
    def indices(self) -> Tensor:  # type: ignore[override]
        if self._indices is None:
            if self._frame != self._followed.clock.frame:
                raise RuntimeError("coordinates of an earlier frame of a stream cannot be read any more")
            self._indices = self.rows.indices[self.rows.order]
            self._indices.followed = self._followed  # type: ignore[attr-defined]
            self._version = self._indices._version
        return self._indices

    def __len__(self) -> int:
        return self._length

    @property
    def device(self) -> torch.device:
        """Where the indices lie."""
        return self.rows.indices.device

    @property
    def modified(self) -> bool:
        """Whether `indices` were written to since."""
        return self._indices is not None and self._indices._version != self._version

    def link(self, geometry: Geometry) -> Link:
        """The map of that geometry from these coordinates, found once."""
        self.check_unmodified()
        found = self._links.get(geometry)
        if found is None:
            found = self._followed.link(geometry, self.spatial_shape)
            assert found is not None  # the grid is the level's own
            self._links[geometry] = found
        return found


def follow(coordinates: Coordinates, rows: Rows, clock: Clock) -> Coordinates:
    """Coordinates of the same indices whose maps are those of the level."""
    alias = copy.copy(coordinates)
    alias.indices = coordinates.indices.detach()  # a tensor object of its own
    alias.indices.followed = Followed(rows, clock)  # type: ignore[attr-defined]
    alias._version = alias.indices._version if not alias.indices.is_inference() else 0
    alias._links, alias._kept, alias._checked = {}, {}, True
    return alias
