"""Switches of the whole process."""

from __future__ import annotations

from typing import Any

_state: dict[str, Any] = {"kmap": "hashmap_on_the_fly", "downsample": "spconv", "conv": 0}


def get_kmap_mode() -> str:
    """How kernel maps are built."""
    return _state["kmap"]


def set_kmap_mode(kmap_mode: str) -> None:
    """ "hashmap_on_the_fly": output cells as a dense convolution has them; "hashmap": see `set_downsample_mode`."""
    _state["kmap"] = _one_of(kmap_mode, "kmap_mode", ("hashmap_on_the_fly", "hashmap"))


def get_downsample_mode() -> str:
    """Which output cells a strided layer has with the kmap mode "hashmap"."""
    return _state["downsample"]


def set_downsample_mode(downsample_mode: str) -> None:
    """ "minkowski": the floor of the coordinates; "spconv": the same where stride and kernel size are equal."""
    _state["downsample"] = _one_of(downsample_mode, "downsample_mode", ("spconv", "minkowski"))


def get_conv_mode() -> int:
    """The number set last."""
    return _state["conv"]


def set_conv_mode(conv_mode: Any) -> None:
    """0, 1 or 2: ways of the original to compute, which cannot change a result here."""
    _state["conv"] = _one_of(getattr(conv_mode, "value", conv_mode), "conv_mode", (0, 1, 2))


def _one_of(value: Any, name: str, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return value
