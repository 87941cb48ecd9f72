"""Features at integer cells with a stride, and points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pointcloud.shims.torchsparse.utils.tensor_cache import (
    TensorCache,
    TensorCacheMode,
    get_global_tensor_cache,
    get_tensor_cache_mode,
    set_global_tensor_cache,
)
from pointcloud.shims.torchsparse.utils.to_dense import to_dense
from pointcloud.shims.torchsparse.utils.utils import make_ntuple

_settings = {"negative": False}


def get_allow_negative_coordinates() -> bool:
    """Whether layers accept negative coordinates."""
    return _settings["negative"]


def set_allow_negative_coordinates(allow_negative_coordinates: bool) -> None:
    """Let layers accept negative coordinates, or refuse them (as at first)."""
    _settings["negative"] = bool(allow_negative_coordinates)


class SparseTensor:
    """Features [N, C] at cells [N, 4], batch index first.

    Args:
        feats: [N, C]; also `F`.
        coords: int32 [N, 4]; also `C`.
        stride: cells of the finest level along a cell of this one, one number or three; also `s`.
        spatial_range: batch size and extent of the grid, four numbers; by default that of the data.
    """

    def __init__(self, feats: Tensor, coords: Tensor, stride: Any = 1, spatial_range: Any = None) -> None:
        self.feats = feats
        self.coords = coords
        self.stride = make_ntuple(stride, ndim=3)
        self.spatial_range = None if spatial_range is None else make_ntuple(spatial_range, ndim=len(spatial_range))
        self._caches: Any = TensorCache()
        if get_tensor_cache_mode() == TensorCacheMode.GLOBAL_TENSOR_CACHE:
            self._caches = get_global_tensor_cache() or self._caches
            set_global_tensor_cache(self._caches)

    @property
    def F(self) -> Tensor:
        return self.feats

    @F.setter
    def F(self, feats: Tensor) -> None:
        self.feats = feats

    @property
    def C(self) -> Tensor:
        return self.coords

    @C.setter
    def C(self, coords: Tensor) -> None:
        self.coords = coords

    @property
    def s(self) -> tuple[int, ...]:
        return self.stride

    @s.setter
    def s(self, stride: Any) -> None:
        self.stride = make_ntuple(stride, ndim=3)

    def to(self, device: Any, non_blocking: bool = True) -> SparseTensor:
        """Move this tensor, and return it."""
        self.coords = self.coords.to(device, non_blocking=non_blocking)
        self.feats = self.feats.to(device, non_blocking=non_blocking)
        return self

    def cpu(self) -> SparseTensor:
        return self.to("cpu")

    def cuda(self) -> SparseTensor:
        return self.to("cuda")

    def half(self) -> SparseTensor:
        self.feats = self.feats.half()
        return self

    def detach(self) -> SparseTensor:
        self.coords, self.feats = self.coords.detach(), self.feats.detach()
        return self

    def dense(self) -> Tensor:
        """[B, X, Y, Z, C], zeros where there is no row. Raises ValueError without a spatial_range."""
        if self.spatial_range is None:
            raise ValueError("spatial_range must be given to the SparseTensor that dense() is asked of, got None")
        return to_dense(self.feats, self.coords, self.spatial_range)

    def with_feats(self, feats: Tensor) -> SparseTensor:
        """Other features at the same cells, with the maps already found."""
        out = SparseTensor(feats, self.coords, self.stride, self.spatial_range)
        out._caches = self._caches
        return out

    def __add__(self, other: SparseTensor) -> SparseTensor:
        if self.coords is not other.coords and not torch.equal(self.coords, other.coords):
            raise ValueError("+ needs tensors at the same coordinates in the same order; generative_add takes others")
        return self.with_feats(self.feats + other.feats)


class PointTensor:
    """Features `F` [N, C] of points at floating `C` [N, 4], with what was looked up for them."""

    def __init__(self, feats: Tensor, coords: Tensor, idx_query: Any = None, weights: Any = None) -> None:
        self.F = feats
        self.C = coords
        self.idx_query = {} if idx_query is None else idx_query
        self.weights = {} if weights is None else weights
        self.additional_features: dict[str, Any] = {"idx_query": {}, "counts": {}}

    def to(self, device: Any, non_blocking: bool = True) -> PointTensor:
        """Move this tensor, and return it."""
        self.F = self.F.to(device, non_blocking=non_blocking)
        self.C = self.C.to(device, non_blocking=non_blocking)
        return self

    def cuda(self) -> PointTensor:
        return self.to("cuda")

    def detach(self) -> PointTensor:
        self.F, self.C = self.F.detach(), self.C.detach()
        return self

    def __add__(self, other: PointTensor) -> PointTensor:
        out = PointTensor(self.F + other.F, self.C, self.idx_query, self.weights)
        out.additional_features = self.additional_features
        return out
