"""A point cloud as read from a file: coordinates and what the sensor or a person attached to each point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from common_kernels.checks import describe as describe_tensor


def describe(value: object) -> str:
    """`float32 [50, 3]` for a tensor, the type's name for anything else."""
    if isinstance(value, Tensor):
        return describe_tensor(value)
    return type(value).__name__


def _check(
    name: str, value: object, dtype: torch.dtype, shape: tuple[int, ...], meaning: str, device: torch.device
) -> None:
    wanted = f"{name} must be {str(dtype).removeprefix('torch.')} {meaning} = {list(shape)}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{wanted}, got {describe(value)}")
    if value.dtype != dtype or tuple(value.shape) != shape:
        raise ValueError(f"{wanted}, got {describe(value)}")
    if value.device != device:
        raise ValueError(f"{name} must be on the device of xyz ({device}), got {value.device}")


@dataclass(frozen=True, eq=False)
class PointCloud:
    """N points with coordinates in metres.

    xyz: float32 [N, 3]. World coordinates are `xyz + origin`; map coordinates (UTM and the like) keep their
    millimetres this way.
    intensity: float32 [N], in the file's own scale. rgb: uint8 [N, 3]. labels: int64 [N].
    extra: further per-point columns by name, each [N, ...] (ring, time, ...).
    origin: float64 [3] in metres, always on the CPU; zeros unless the file's coordinates are far from 0.

    Raises TypeError for what is not a tensor, ValueError where a shape, dtype or device does not fit.
    """

    xyz: Tensor
    intensity: Tensor | None = None
    rgb: Tensor | None = None
    labels: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    origin: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))

    def __post_init__(self) -> None:
        if not isinstance(self.xyz, Tensor):
            raise TypeError(f"xyz must be float32 [N, 3], got {describe(self.xyz)}")
        if self.xyz.dtype != torch.float32 or self.xyz.ndim != 2 or self.xyz.shape[1] != 3:
            raise ValueError(f"xyz must be float32 [N, 3], got {describe(self.xyz)}")
        n, device = self.xyz.shape[0], self.xyz.device
        if self.intensity is not None:
            _check("intensity", self.intensity, torch.float32, (n,), "[N]", device)
        if self.rgb is not None:
            _check("rgb", self.rgb, torch.uint8, (n, 3), "[N, 3]", device)
        if self.labels is not None:
            _check("labels", self.labels, torch.int64, (n,), "[N]", device)
        _check("origin", self.origin, torch.float64, (3,), "[3]", torch.device("cpu"))
        for name, column in self.extra.items():
            wanted = f"extra[{name!r}] must be a tensor [N, ...] with N = {n}"
            if not isinstance(column, Tensor):
                raise TypeError(f"{wanted}, got {describe(column)}")
            if column.ndim < 1 or column.shape[0] != n:
                raise ValueError(f"{wanted}, got {describe(column)}")
            if column.device != device:
                raise ValueError(f"extra[{name!r}] must be on the device of xyz ({device}), got {column.device}")
        # A private copy behind a read-only view: a frozen cloud must not change through the caller's dict.
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    def __len__(self) -> int:
        return self.xyz.shape[0]

    def __repr__(self) -> str:
        parts = [name for name in ("intensity", "rgb", "labels") if getattr(self, name) is not None] + list(self.extra)
        return f"PointCloud({len(self)} points, {', '.join(['xyz', *parts])}, device={self.xyz.device})"

    # A read-only mapping cannot be pickled, and DataLoader workers pickle what they return.
    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "extra": dict(self.extra)}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    @property
    def device(self) -> torch.device:
        return self.xyz.device

    def world(self) -> Tensor:
        """World coordinates, float64 [N, 3]."""
        return self.xyz.double() + self.origin.to(self.device)

    def to(self, device: torch.device | str) -> PointCloud:
        """The same cloud with its columns on `device`."""
        return replace(
            self,
            xyz=self.xyz.to(device),
            intensity=None if self.intensity is None else self.intensity.to(device),
            rgb=None if self.rgb is None else self.rgb.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            extra={name: column.to(device) for name, column in self.extra.items()},
        )

    def select(self, index: Tensor) -> PointCloud:
        """The points of a mask bool [N] or of an index int32 / int64 [M], in that order.

        Raises TypeError for what is not a tensor, ValueError for another dtype or shape, IndexError for a row outside
        [0, N).
        """
        n = len(self)
        wanted = "index must be bool [N] or int32 / int64 [M]"
        if not isinstance(index, Tensor):
            raise TypeError(f"{wanted}, got {describe(index)}")
        if index.ndim != 1 or index.dtype not in (torch.bool, torch.int32, torch.int64):
            raise ValueError(f"{wanted}, got {describe(index)}")
        if index.dtype == torch.bool:
            if index.shape[0] != n:
                raise ValueError(f"index must be bool [N] with N = {n}, got {describe(index)}")
            rows = index.nonzero().flatten()
        else:
            rows = index.long()
            if rows.numel() and not (0 <= int(rows.min()) and int(rows.max()) < n):
                raise IndexError(f"index must lie in [0, {n}), got {int(rows.min())} to {int(rows.max())}")
        rows = rows.to(self.device)
        return replace(
            self,
            xyz=self.xyz[rows],
            intensity=None if self.intensity is None else self.intensity[rows],
            rgb=None if self.rgb is None else self.rgb[rows],
            labels=None if self.labels is None else self.labels[rows],
            extra={name: column[rows] for name, column in self.extra.items()},
        )

    def features(self, *names: str) -> Tensor:
        """Columns side by side as a network takes them, float32 [N, len(names)].

        Names: x, y, z, intensity, red, green, blue and the one-dimensional columns of `extra`.
        Raises ValueError for a column the cloud does not have.
        """
        columns: dict[str, Tensor] = {"x": self.xyz[:, 0], "y": self.xyz[:, 1], "z": self.xyz[:, 2]}
        if self.intensity is not None:
            columns["intensity"] = self.intensity
        if self.rgb is not None:
            columns |= {"red": self.rgb[:, 0], "green": self.rgb[:, 1], "blue": self.rgb[:, 2]}
        for name, column in self.extra.items():
            if column.ndim == 1:
                columns.setdefault(name, column)
        missing = [name for name in names if name not in columns]
        if missing or not names:
            raise ValueError(f"names must be among {', '.join(columns)}, got {', '.join(missing) or 'no names'}")
        return torch.stack([columns[name].float() for name in names], dim=1)
