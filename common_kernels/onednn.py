"""oneDNN's products on weights in its own order: the only file that names torch's private operators for them.

A product on a weight that has been laid out beforehand ("packed") is up to twice as fast as the plain one. A packed
weight is a copy, which may go stale: `PackedWeight` holds the one rule for that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T = TypeVar("T")

DTYPES = (torch.float32, torch.bfloat16)

# What an activation's name means.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}
# The same in oneDNN: its name, its numbers, its algorithm.
_POST_OPS: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "hardswish": ("hardswish", [], ""),
    "silu": ("swish", [], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
}


def _operator(name: str, overload: str = "default") -> Any:
    """One of torch's private operators; None where this torch has been built without it."""
    return getattr(getattr(torch.ops.mkldnn, name, None), overload, None)


_pack_linear = _operator("_reorder_linear_weight")
_linear = _operator("_linear_pointwise")
_pack_convolution = _operator("_reorder_convolution_weight")
_convolution = _operator("_convolution_pointwise")
_convolution_add = _operator("_convolution_pointwise", "binary")


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """weight [out, in] in the order that is fastest for `rows` rows."""
    packed: Tensor = _pack_linear(weight, rows)
    return packed


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """act(x @ weight.T + bias) for x [..., in] and a weight from `pack_linear`: [..., out]."""
    out: Tensor = _linear(x, packed, bias, *_POST_OPS[activation])
    return out


Pair = tuple[int, ...] | list[int]


def pack_convolution(
    weight: Tensor, padding: Pair, stride: Pair, dilation: Pair, groups: int, shape: list[int]
) -> Tensor:
    """weight [Cout, Cin / groups, kh, kw] in the order that is fastest for an input of a shape [B, Cin, H, W]."""
    packed: Tensor = _pack_convolution(weight, padding, stride, dilation, groups, shape)
    return packed


def convolution(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    padding: Pair,
    stride: Pair,
    dilation: Pair,
    groups: int,
    activation: str = "none",
) -> Tensor:
    """act(conv(x) + bias) for x [B, Cin, H, W] and a weight from `pack_convolution`: [B, Cout, Ho, Wo]."""
    out: Tensor = _convolution(x, packed, bias, padding, stride, dilation, groups, *_POST_OPS[activation])
    return out


def convolution_add(
    x: Tensor,
    residual: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    padding: Pair,
    stride: Pair,
    dilation: Pair,
    activation: str = "none",
) -> Tensor:
    """act(conv(x) + bias + residual) of one group, where act is "none" or "relu": all that oneDNN has after a sum."""
    last = None if activation == "none" else activation
    out: Tensor = _convolution_add(x, residual, packed, bias, padding, stride, dilation, 1, "add", 1.0, last, [], "")
    return out


@functools.cache
def has_linear(dtype: torch.dtype, activation: str = "none") -> bool:
    """Whether packed linear layers of `dtype`, ending in `activation`, compute what they should on this CPU."""

    def trial(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(x, pack_linear(weight, len(x)), bias, activation)

    def meaning(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ACTIVATIONS[activation](F.linear(x, weight, bias))

    return _agrees(dtype, ((70, 96), (80, 96), (80,)), trial, meaning)


@functools.cache
def has_convolution(dtype: torch.dtype, activation: str = "none") -> bool:
    """Whether packed convolutions of `dtype`, ending in `activation`, compute what they should on this CPU."""
    window = ((1, 1), (1, 1), (1, 1))

    def trial(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        packed = pack_convolution(weight, *window, 1, list(x.shape))
        sums = convolution(x, packed, bias, *window, 1, activation)
        return convolution_add(x, sums, packed, bias, *window)

    def meaning(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        sums = F.conv2d(x, weight, bias, padding=1)
        return sums + ACTIVATIONS[activation](sums)

    return _agrees(dtype, ((2, 16, 9, 7), (24, 16, 3, 3), (24,)), trial, meaning)


def _agrees(
    dtype: torch.dtype,
    shapes: tuple[tuple[int, ...], ...],
    trial: Callable[..., Tensor],
    meaning: Callable[..., Tensor],
) -> bool:
    if dtype not in DTYPES or not torch.backends.mkldnn.is_available():
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        generator = torch.Generator().manual_seed(0)
        x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
        weight = weight / weight[0].numel() ** 0.5
        with torch.no_grad():
            got = trial(x, weight, bias).double()
            want = meaning(x.double(), weight.double(), bias.double())
    # Another torch, another CPU: plain products there.
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    tolerance = 1e-5 if dtype == torch.float32 else 0.1  # values up to 10; bf16 keeps eight bits
    return bool((got - want).abs().max() <= tolerance)


def availability() -> dict[str, bool]:
    """What oneDNN offers on this machine, by a name for people: "linear fp32", "convolution bf16" and so on."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    return {
        f"{kind} {names[dtype]}": has(dtype)
        for kind, has in (("linear", has_linear), ("convolution", has_convolution))
        for dtype in DTYPES
    }


# From how many rows on a weight is compared whole in each call: that takes less than 1 % of such a product in bf16.
_ROWS_OF_A_WHOLE_CHECK = 16384
# Turns (of 2 KiB) up to which it is compared whole for any number of rows.
_FEW_TURNS = 8


class _Held(Generic[T]):
    """A packed form with what tells whether its weight has changed."""

    __slots__ = ("at", "dtype", "least", "record", "rows", "same", "turn", "turns", "value", "version", "weight")

    def __init__(self, weight: Tensor, make: Callable[[Tensor], T], rows: int) -> None:
        from common_kernels import cpu_checksum

        # Held, so that its memory cannot become that of another weight.
        self.weight = weight.detach()
        self.dtype = weight.dtype
        self.version = None if weight.is_inference() else weight._version
        span = 1 + sum((n - 1) * step for n, step in zip(weight.shape, weight.stride())) if weight.numel() else 0
        # Before the weight is packed: an edit in between must not pass unseen.
        self.record, self.turns = cpu_checksum.take_sums(weight.data_ptr(), span * weight.element_size())
        self.at = self.record.ctypes.data
        self.turn = 0
        self.rows = rows
        self.least = self.turns if self.version is None or self.turns <= _FEW_TURNS else 1
        self.same = cpu_checksum.same_sums
        with torch.no_grad():
            self.value = make(self.weight)


class PackedWeight(Generic[T]):
    """A packed form of a weight on the CPU, made once and made again when the weight has changed.

    Always noticed, before the next product: another tensor in the weight's place (``load_state_dict(assign=True)``,
    ``.to(...)``, ``weight.data = ...``) and every edit that torch counts in ``weight._version`` (in-place operations,
    ``load_state_dict``, most optimisers).

    torch does not count edits through ``weight.data``, through ``weight.numpy()`` or by fused optimisers, and counts
    nothing for weights made in inference mode. The form therefore carries checksums of the weight's bytes. A weight
    made in inference mode is compared whole in every call; so is any weight of at most 16 KiB, or that multiplies 16384
    rows or more. A larger weight is compared in turns of 2 KiB, each spread over the whole weight, one or more in a
    call: an edit of the whole weight is noticed in the next call, that of a single number after at most as many calls
    as the weight has turns, or 16384 / rows if that is less. To be sure at once, call `drop`, which a `PackedModule`
    does in ``train()``, ``eval()``, ``to(...)`` and ``load_state_dict``. The check takes 0.5 to 2 % of a product of 16
    to 128 rows, and less of larger ones.

    Copies and pickles are empty: what they belong to has a weight of its own.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: _Held[T] | None = None

    def get(self, weight: Tensor, make: Callable[[Tensor], T], rows: int = 0) -> T:
        """The form of `weight` if it is current, else a new one by `make(weight)`.

        `rows` is how many rows each product usually has. It decides how much of the weight is compared in each call.
        """
        value = self.current(weight)
        if value is None:
            self._held = held = _Held(weight, make, rows)
            return held.value
        return value

    def current(self, weight: Tensor, rows: int | None = None) -> T | None:
        """The form of `weight` if there is one and the weight has not changed; else None, and the form is dropped.

        `rows` is the number of rows of this product, where it is not the usual one.
        """
        held = self._held
        if held is None:
            return None
        version, turn, turns = held.version, held.turn, held.turns
        n = held.least + (held.rows if rows is None else rows) * turns // _ROWS_OF_A_WHOLE_CHECK
        if n >= turns:
            turn, n = 0, turns
        held.turn = turn + n if turn + n < turns else 0
        if (
            held.weight.is_set_to(weight)
            and held.dtype == weight.dtype
            and (version is None or version == weight._version)
            and held.same(held.at, turn, n)
        ):
            return held.value
        self._held = None
        return None

    @property
    def last(self) -> T | None:
        """The form as it was made, without a look at the weight; None if there is none."""
        held = self._held
        return None if held is None else held.value

    def drop(self) -> None:
        """Forget the form: the next `get` makes it again."""
        self._held = None

    def __reduce__(self) -> tuple[type[PackedWeight[T]], tuple[()]]:
        return type(self), ()


class PackedModule(nn.Module):
    """A module with a packed weight `_packed`, dropped wherever all weights may have been edited."""

    _packed: PackedWeight[Any]

    def train(self, mode: bool = True) -> Any:
        self._packed.drop()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed.drop()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._packed.drop()
