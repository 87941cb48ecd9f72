"""In which dtype an accelerated network computes, and the casts at its edges: one answer for all domains."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from common_models.names import did_you_mean

# The names of dtypes wherever a user may give one.
NAMES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
    "int8": torch.int8,
}
# What "auto" was called before all domains shared one name.
_AUTO = ("auto", "fastest")


def name_of(dtype: torch.dtype) -> str:
    """The dtype's short name, as `bf16`; torch's own where it has none here."""
    return next((name for name, known in NAMES.items() if known == dtype), str(dtype).removeprefix("torch."))


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether a device multiplies bf16 faster than fp32.

    A GPU from compute capability 8.0 does, and a CPU with AVX512-BF16 or AMX. oneDNN's own answer does not tell: it
    counts processors that only convert bf16 and multiply in fp32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(supported is not None and bool(supported()) for supported in asked)


def own(model: nn.Module) -> torch.dtype:
    """The dtype of a network's first floating parameter; fp32 where it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def is_auto(dtype: object) -> bool:
    """Whether a `dtype` leaves the choice to the machine."""
    return isinstance(dtype, str) and dtype in _AUTO


def resolve(
    dtype: str | torch.dtype | None,
    model: nn.Module,
    allowed: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16),
) -> torch.dtype:
    """The dtype that `accelerate(model, dtype=...)` computes in.

    Args:
        dtype: None is the model's own; "auto" the fastest that the model's device computes, which is bf16 for a network
            in fp32 where the device multiplies bf16, and in the other direction fp32 for a network in bf16 on a CPU
            that would multiply it in fp32 anyhow; else a name of NAMES or a torch dtype.
        allowed: what this kind of network can compute in. The model's own dtype always is.

    A warning says where the answer is bf16 and the model's processor does not multiply bf16, and so is slower in it.

    Raises:
        TypeError: neither None, a name nor a torch dtype.
        ValueError: an unknown name, or a dtype that is not allowed.
    """
    chosen = _resolved(dtype, model, allowed)
    if chosen == torch.bfloat16 and not multiplies_bf16(_device(model)):
        warnings.warn(
            "bf16 is slower than fp32 on this processor, which does not multiply bf16: dtype='auto' takes the faster",
            UserWarning,
            stacklevel=3,
        )
    return chosen


def _resolved(dtype: str | torch.dtype | None, model: nn.Module, allowed: tuple[torch.dtype, ...]) -> torch.dtype:
    mine = own(model)
    if dtype is None:
        return mine
    if isinstance(dtype, str):
        if is_auto(dtype):
            return _fastest(mine, model, allowed)
        if dtype not in NAMES:
            names = ", ".join(name for name in NAMES if NAMES[name] in allowed)
            hint = did_you_mean(dtype, ["auto", *NAMES])
            raise ValueError(f"dtype must be None, auto, {names} or a torch dtype, got {dtype!r}{hint}")
        dtype = NAMES[dtype]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be None, a name or a torch dtype, got {type(dtype).__name__}")
    if dtype not in allowed and dtype != mine:
        names = ", ".join(map(name_of, allowed))
        raise ValueError(f"dtype must be one that this network can compute in ({names}), got {name_of(dtype)}")
    return dtype


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _fastest(mine: torch.dtype, model: nn.Module, allowed: tuple[torch.dtype, ...]) -> torch.dtype:
    device = _device(model)
    bf16 = multiplies_bf16(device)
    if mine == torch.float32 and bf16 and torch.bfloat16 in allowed:
        return torch.bfloat16
    if mine == torch.bfloat16 and device.type == "cpu" and not bf16 and torch.float32 in allowed:
        return torch.float32
    return mine


# Casts are classes so that a model that carries them as hooks can be copied and pickled.
@dataclass(frozen=True)
class InputCast:
    """A forward pre-hook (with keyword arguments): floating tensors in any nesting become `dtype`.

    Attributes:
        only: where given, tensors of other dtypes stay as they are.
        leaf: casts a value that is not a tensor, as a domain's own container of tensors; by default such stay.
    """

    dtype: torch.dtype
    only: torch.dtype | None = None
    leaf: Callable[[Any, Callable[[Tensor], Tensor]], Any] | None = None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self.cast(args), self.cast(kwargs)

    def cast(self, values: Any) -> Any:
        """`values` with their tensors cast."""
        return tree_map(self._leaf, values)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        return value if self.leaf is None else self.leaf(value, self._tensor)

    def _tensor(self, tensor: Tensor) -> Tensor:
        wanted = tensor.is_floating_point() and self.only in (None, tensor.dtype)
        return tensor.to(self.dtype) if wanted else tensor


@dataclass(frozen=True)
class OutputCast:
    """A forward hook: what leaves a network in `only` gets the dtype that its original gives."""

    dtype: torch.dtype
    only: torch.dtype
    leaf: Callable[[Any, Callable[[Tensor], Tensor]], Any] | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.cast(output)

    def cast(self, values: Any) -> Any:
        """`values` with their tensors cast."""
        return InputCast(self.dtype, self.only, self.leaf).cast(values)
