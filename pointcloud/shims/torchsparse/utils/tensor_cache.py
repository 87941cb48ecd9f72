"""What tensors of one network share: the maps found so far."""

from __future__ import annotations

from enum import Enum
from typing import Any


class TensorCacheMode(Enum):
    """Whether every tensor that is made starts a cache, or all share one."""

    SEPARATE_TENSOR_CACHE = 0
    GLOBAL_TENSOR_CACHE = 1


class TensorCache:
    """Coordinates by stride, kernel maps by geometry."""

    def __init__(self) -> None:
        self.cmaps: dict[Any, Any] = {}
        self.kmaps: dict[Any, Any] = {}
        self.hashmaps: dict[Any, Any] = {}


_state: dict[str, Any] = {"mode": TensorCacheMode.SEPARATE_TENSOR_CACHE, "cache": None}


def set_tensor_cache_mode(mode: TensorCacheMode) -> None:
    """With GLOBAL_TENSOR_CACHE, `clear_global_tensor_cache` belongs after every step."""
    if not isinstance(mode, TensorCacheMode):
        raise TypeError(f"mode must be a TensorCacheMode, got {mode!r}")
    _state["mode"] = mode


def get_tensor_cache_mode() -> TensorCacheMode:
    """The mode set last."""
    return _state["mode"]


def get_global_tensor_cache() -> TensorCache | None:
    """The shared cache, if there is one."""
    return _state["cache"]


def set_global_tensor_cache(tensor_cache: TensorCache | None) -> None:
    """Share this cache."""
    _state["cache"] = tensor_cache


def clear_global_tensor_cache() -> None:
    """Forget the shared cache."""
    _state["cache"] = None
