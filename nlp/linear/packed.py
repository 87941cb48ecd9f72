"""Linear layers whose weights are laid out once for the fast matrix product of a CPU (oneDNN), and stay plain linears.

On an AVX-512 CPU the library call of `torch.nn.functional.linear` reaches less than half of what oneDNN reaches on
reordered weights in float32 (110 against 250 GFLOP/s on one core); in bfloat16 the gain is 5 % for many rows and 1.6 to
1.8 times for few. Everything the fast path cannot do exactly goes through `torch.nn.functional.linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common_kernels import onednn

# The row count that the weight is laid out for. oneDNN chose the same layout, at the same speed, from 1 to 4096 rows.
_LAYOUT_ROWS = 512
# From how many rows and products on the packed weight is faster, measured at widths 384 to 3072 on one and two threads.
_MIN_ROWS = {torch.float32: 2, torch.bfloat16: 1}
_MIN_PRODUCTS = {torch.float32: 2**20, torch.bfloat16: 64 * 64}
# The activations that a layer may end in, by what they mean.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: onednn.ACTIVATIONS[name] for name in ("none", "gelu", "gelu_tanh", "relu", "silu")
}


class _Packed:
    """A weight in oneDNN's order, and which inputs it serves."""

    __slots__ = ("dtype", "least", "matrix", "width")

    def __init__(self, weight: Tensor, transposed: bool) -> None:
        self.dtype = weight.dtype
        self.width = weight.shape[0 if transposed else 1]
        # The number of input values from which on this product is faster than the plain one.
        rows = max(_MIN_ROWS[self.dtype], -(-_MIN_PRODUCTS[self.dtype] // weight.numel()))
        self.least = rows * self.width
        self.matrix = onednn.pack_linear(weight.t().contiguous() if transposed else weight, _LAYOUT_ROWS)


@dataclass(eq=False)
class Fusion:
    """A linear layer that computes the activation which follows it in a module, and where both must stand for that.

    Attributes:
        module: whose code calls the layer and then the activation.
        layer, slot: names of the two in the module.
        linear: the layer.
        activation: what it computes along with its product.
    """

    module: nn.Module
    layer: str
    slot: str
    linear: nn.Module
    activation: Callable[[Tensor], Tensor]

    def holds(self) -> bool:
        """Whether the two still follow each other and nothing looks in between.

        An adapter that was put around the layer wants the plain product, as does a hook on the layer.
        """
        children, linear = self.module._modules, self.linear
        return (
            children.get(self.layer) is linear
            and getattr(children.get(self.slot), "fusion", None) is self
            and not (linear._forward_hooks or linear._backward_hooks or linear._backward_pre_hooks)
        )


class FusedActivation(nn.Module):
    """Stands where an activation stood that a linear layer computes now; computes it where the layer does not."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        """x as it is, or activated where the two were parted."""
        return x if self.fusion.holds() else self.fusion.activation(x)


class PackedMixin(onednn.PackedModule):
    """What linear layers share that hold a reordered copy of `weight` beside it.

    `activation` is applied to the result on every path: "none", "gelu" (erf), "gelu_tanh", "relu" or "silu"; where a
    `fusion` is set, as long as that holds.

    The copy is no parameter and no buffer: it is not saved, pickled, copied, moved or listed. It is made again when the
    weight changes; `onednn.PackedWeight` tells which changes are noticed at once and which within some calls.
    """

    activation: str
    fusion: Fusion | None = None
    _transposed: bool  # whether the weight is [in, out]
    _packed: onednn.PackedWeight[_Packed]

    def _multiply(self, x: Tensor) -> Tensor:
        """act(x @ weight + bias) for x [..., in]."""
        packed = self._current(x)
        activation = self.activation if self.fusion is None or self.fusion.holds() else "none"
        if packed is None:
            return ACTIVATIONS[activation](self._plain(x))
        return onednn.linear(x, packed.matrix, self._parameters["bias"], activation)

    def _current(self, x: Tensor) -> _Packed | None:
        """The reordered weight, if the fast path computes exactly this call and faster; else None."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
            return None
        packed = self._packed.last
        if packed is not None and x.numel() < packed.least and x.dtype == packed.dtype:
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
        if packed is not None:
            packed = self._packed.current(weight, x.numel() // packed.width if packed.width else 0)
        if packed is None and self._can_pack(x, weight):
            packed = self._packed.get(weight, lambda weight: _Packed(weight, self._transposed))
        if (
            packed is None
            or x.dtype != packed.dtype
            or x.shape[-1] != packed.width
            or x.numel() < packed.least
            or (bias is not None and (bias.dtype != packed.dtype or not bias.is_cpu))
        ):
            return None
        return packed

    def _can_pack(self, x: Tensor, weight: nn.Parameter) -> bool:
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
            and bool(torch.backends.mkldnn.enabled)
            and onednn.has_linear(x.dtype, self.activation)
        )

    def _plain(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation == "none" else f"{text}, activation={self.activation}".lstrip(", ")


def _requires_grad(bias: Tensor | None) -> bool:
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
        self._packed = onednn.PackedWeight()

    def forward(self, x: Tensor) -> Tensor:
        """act(x @ weight.T + bias) for x [..., in]: [..., out]."""
        return self._multiply(x)

    def _plain(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
