"""A network of which only the head, biases and small residual branches are trained, and what it then need not keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pointcloud.convolution import SparseConvolution
from pointcloud.tensor import SparseConvTensor

_RELUS = {torch.relu: False, Tensor.relu: False, F.relu: False, torch.relu_: True, Tensor.relu_: True}


class LeanBackward(TorchFunctionMode):
    """Within, ReLUs keep one bit per value, and batch norms in evaluation mode with frozen scales keep nothing.

    Results are those of torch up to rounding. Any other batch norm is left as it is.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RELUS and args and args[0].requires_grad and args[0].is_floating_point():
            return _PackedRelu.apply(args[0], kwargs.get("inplace", _RELUS[func]))
        if func is F.batch_norm:
            scaled = _frozen_norm(*args, **kwargs)
        elif func is torch.batch_norm:
            x, weight, bias, mean, variance, training, momentum, eps = args[:8]
            scaled = _frozen_norm(x, mean, variance, weight, bias, training, momentum, eps)
        else:
            scaled = None
        return func(*args, **kwargs) if scaled is None else scaled


class _PackedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        positive = (x > 0).flatten()
        ctx.save_for_backward(_packed(positive))
        if not inplace:
            return x.relu()
        ctx.mark_dirty(x)
        return x.relu_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (packed,) = ctx.saved_tensors
        bits = (packed[:, None] & _powers(grad.device)) != 0
        return grad * bits.flatten()[: grad.numel()].view_as(grad), None


def _packed(positive: Tensor) -> Tensor:
    """Eight flags [N] in a byte, uint8 [N / 8 rounded up]."""
    bits = F.pad(positive, (0, -len(positive) % 8)).view(-1, 8)
    return (bits * _powers(positive.device)).sum(1, dtype=torch.uint8)


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=device)


def _frozen_norm(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """The batch norm as `x * scale + shift`; None where its scale is not a constant."""
    if training or mean is None or variance is None or (weight is not None and weight.requires_grad):
        return None
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    axes = (1, -1, *[1] * (x.ndim - 2))
    return x * scale.view(axes) + shift.view(axes)


class Branch(nn.Module):
    """A convolution and a residual branch of low rank beside its centre tap: `y = conv(x) + (x @ down) @ up`.

    `down` [Cin, R] is fixed, with orthonormal columns; `up` [R, Cout] is trained from zero. So the branch keeps R
    numbers per row instead of Cin, and can be added to the convolution's weight in the end.
    """

    down: Tensor

    def __init__(self, layer: SparseConvolution, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        random = torch.randn(layer.in_channels, rank, generator=generator, dtype=torch.float64)
        like = layer.weight
        self.register_buffer("down", torch.linalg.qr(random)[0].to(like))
        self.up = nn.Parameter(like.new_zeros(rank, layer.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin] -> [N, Cout]."""
        return (x @ self.down) @ self.up

    def merge(self, layer: SparseConvolution) -> None:
        """Add the branch to the layer's centre tap."""
        with torch.no_grad():
            tap = layer.weight.detach()
            for k in layer.kernel_size:
                tap = tap.select(1, k // 2)
            tap.add_((self.down @ self.up).T)


def can_branch(module: nn.Module, rank: int) -> bool:
    """Whether a layer is a convolution onto its input's coordinates with a tap at the centre, without groups."""
    return (
        isinstance(module, SparseConvolution)
        and module.groups == 1
        and module.activation == "none"
        and (module.subm or module.conv1x1)
        and module.in_channels > rank
        and math.prod(k % 2 for k in module.kernel_size) == 1
    )


@contextmanager
def branched(model: nn.Module, names: Sequence[str], rank: int, seed: int) -> Iterator[dict[str, Branch]]:
    """Within, each named convolution has a branch, merged into its weight at the end unless an error comes."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, SparseConvolution] = {}
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, SparseConvolution)
        layers[name] = layer
    branches = {name: Branch(layer, rank, generator) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.forward = _beside(layer.forward, branches[name])  # type: ignore[method-assign]
    try:
        yield branches
    finally:
        for layer in layers.values():
            del layer.forward
    for name, layer in layers.items():
        branches[name].merge(layer)


def _beside(forward: Callable[..., SparseConvTensor], branch: Branch) -> Callable[..., SparseConvTensor]:
    def run(input: SparseConvTensor, *arguments: Any, **options: Any) -> SparseConvTensor:
        out = forward(input, *arguments, **options)
        return out.replace_feature(out.features + branch(input.features))

    return run
