"""Linear layers whose weights are laid out once for the fast matrix product of a CPU (oneDNN), and stay plain linears.

On an AVX-512 CPU the library call of `torch.nn.functional.linear` reaches less than half of what oneDNN reaches on
reordered weights in float32 (110 against 250 GFLOP/s on one core); in bfloat16 the gain is 5 % for many rows and 1.6 to
1.8 times for few. Everything the fast path cannot do exactly goes through `torch.nn.functional.linear`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# The row count that the weight is laid out for. oneDNN chose the same layout, at the same speed, from 1 to 4096 rows.
_LAYOUT_ROWS = 512
# From how many rows and products on the packed weight is faster, measured at widths 384 to 3072 on one and two threads.
_MIN_ROWS = {torch.float32: 2, torch.bfloat16: 1}
_MIN_PRODUCTS = {torch.float32: 2**20, torch.bfloat16: 64 * 64}
# Weights compared on each call, to notice updates that torch does not count (`weight.data.copy_(...)`).
_PROBES = 16


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


# name -> (meaning, oneDNN's post-op, its algorithm)
ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, str]] = {
    "none": (lambda x: x, "none", ""),
    "gelu": (F.gelu, "gelu", "none"),
    "gelu_tanh": (_gelu_tanh, "gelu", "tanh"),
    "relu": (F.relu, "relu", ""),
    "silu": (F.silu, "swish", ""),
}


@functools.cache
def can_pack(dtype: torch.dtype, activation: str = "none") -> bool:
    """Whether oneDNN multiplies `dtype` on this CPU with `activation` fused, found out by trying it once."""
    if dtype not in _MIN_ROWS or not torch.backends.mkldnn.is_available():
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        meaning, post_op, algorithm = ACTIVATIONS[activation]
        generator = torch.Generator().manual_seed(0)
        x, weight, bias = (torch.randn(n, generator=generator).to(dtype) for n in ((70, 96), (80, 96), (80,)))
        weight = weight / 10
        with torch.no_grad():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _LAYOUT_ROWS)
            got = torch.ops.mkldnn._linear_pointwise(x, packed, bias, post_op, [], algorithm).double()
            want = meaning(F.linear(x.double(), weight.double(), bias.double()))
    except (AttributeError, NotImplementedError, RuntimeError):  # another torch, another CPU: plain products there
        return False
    tolerance = 1e-5 if dtype == torch.float32 else 0.05  # values up to 5; bfloat16 keeps eight bits
    return bool((got - want).abs().max() <= tolerance)


class _Pack:
    """A reordered weight, and how to tell that the weight it was made from has changed."""

    __slots__ = ("address", "copies", "dtype", "least", "multiply", "packed", "probes", "source", "version", "width")

    def __init__(self, weight: nn.Parameter, transposed: bool) -> None:
        # Held, so that its address cannot become that of another weight.
        self.source = weight.detach()
        self.address = weight.data_ptr()
        self.version = weight._version
        self.dtype = weight.dtype
        self.width = weight.shape[0 if transposed else 1]
        # The number of input values from which on this product is faster than the plain one.
        rows = max(_MIN_ROWS[self.dtype], -(-_MIN_PRODUCTS[self.dtype] // weight.numel()))
        self.least = rows * self.width
        flat = self.source.view(-1)
        # An odd step walks through all columns of a weight.
        self.probes = flat[:: max(1, flat.numel() // _PROBES) | 1]
        self.copies = self.probes.clone()
        matrix = self.source.t().contiguous() if transposed else self.source
        self.packed = torch.ops.mkldnn._reorder_linear_weight(matrix, _LAYOUT_ROWS)
        self.multiply = torch.ops.mkldnn._linear_pointwise.default

    def is_current(self, weight: torch.Tensor) -> bool:
        # `_version` counts on for the same storage; another storage has another address while this one is held.
        return (
            self.version == weight._version
            and self.address == weight.data_ptr()
            and self.dtype == weight.dtype
            and torch.equal(self.probes, self.copies)
        )


class PackedMixin(nn.Module):
    """What linear layers share that hold a reordered copy of `weight` beside it.

    `activation` is applied to the result on every path: "none", "gelu" (erf), "gelu_tanh", "relu" or "silu".

    The copy is no parameter and no buffer: it is not saved, pickled, copied, moved or listed. It is made again when the
    weight changes: updates that torch counts (optimisers, ``load_state_dict``, any in-place operation) are always
    noticed, replaced weights too. Those it does not count (``weight.data.mul_(2)``, ``weight.numpy()[...] = ...``) are
    noticed where they touch one of 16 weights spread over the whole, else by the next ``train()``, ``eval()`` or
    ``to(...)``.
    """

    activation: str
    _transposed: bool  # whether the weight is [in, out]
    _pack: _Pack | None

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        """act(x @ weight + bias) for x [..., in]."""
        meaning, post_op, algorithm = ACTIVATIONS[self.activation]
        pack = self._fresh_pack(x)
        if pack is None:
            return meaning(self._plain(x))
        result: torch.Tensor = pack.multiply(x, pack.packed, self._parameters["bias"], post_op, [], algorithm)
        return result

    def _fresh_pack(self, x: torch.Tensor) -> _Pack | None:
        """The reordered weight, if the fast path computes exactly this call and faster; else None."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not torch.Tensor:
            return None
        pack = self._pack
        if pack is not None and x.numel() < pack.least and x.dtype == pack.dtype:
            return None
        weight = self._parameters.get("weight")  # None while something else, such as a mask of pruning, computes it
        bias = self._parameters["bias"]
        if (
            weight is None
            or not x.is_cpu
            or x.dim() < 2
            or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or _requires_grad(bias)))
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        if pack is not None and not pack.is_current(weight):
            self._pack = pack = None
        if pack is None and self._can_pack(x, weight):
            with torch.no_grad():
                self._pack = pack = _Pack(weight, self._transposed)
        if (
            pack is None
            or x.dtype != pack.dtype
            or x.shape[-1] != pack.width
            or x.numel() < pack.least
            or (bias is not None and (bias.dtype != pack.dtype or not bias.is_cpu))
        ):
            return None
        return pack

    def _can_pack(self, x: torch.Tensor, weight: nn.Parameter) -> bool:
        return (
            weight.dtype in _MIN_ROWS
            and weight.dtype == x.dtype
            # A single row, as in greedy decoding, does not need the copy in float32: do not make it.
            and x.numel() >= _MIN_ROWS[x.dtype] * x.shape[-1]
            and x.numel() * weight.numel() >= _MIN_PRODUCTS[x.dtype] * x.shape[-1]
            and weight.numel() > 0
            and type(weight) is nn.Parameter
            and weight.is_cpu
            and weight.is_contiguous()
            and not weight.is_inference()  # counts no updates
            and bool(torch.backends.mkldnn.enabled)
            and can_pack(x.dtype, self.activation)
        )

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def train(self, mode: bool = True) -> Any:
        self._pack = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._pack = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pack": None}

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation == "none" else f"{text}, activation={self.activation}".lstrip(", ")


def _requires_grad(bias: torch.Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


class PackedLinear(PackedMixin, nn.Linear):
    """A `torch.nn.Linear` (the same parameters, names and results) that is fast on a CPU without gradients.

    Built from an existing layer, whose Parameter objects it shares: x [..., in] -> activation(x @ weight.T + bias)
    [..., out].
    """

    _transposed = False

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.training = linear.training
        self.activation = activation
        self._pack = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """act(x @ weight.T + bias) for x [..., in]: [..., out]."""
        return self._multiply(x)

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)
