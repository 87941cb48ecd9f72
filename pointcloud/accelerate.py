"""Faster inference of a user's own model: batch norm, ReLU and sums go into the convolutions, weights into bf16."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pointcloud.conv import SparseConvolution
from pointcloud.models.residual import FusedResidualBlock, ResidualBlock
from pointcloud.modules import Identity, SparseBatchNorm, SparseReLU, SparseSequential
from pointcloud.tensor import SparseConvTensor

BATCH_NORMS = (nn.BatchNorm1d, SparseBatchNorm)
RELUS = (nn.ReLU, SparseReLU)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` changed.

    Attributes:
        batch_norms: batch norms folded into the weights of the convolution before them.
        activations: ReLUs computed by the convolution before them.
        residuals: sums of a residual block computed by its second convolution.
        convolutions: sparse convolutions, folded or not.
        batch_norms_left: names of the batch norms still computed on their own.
        dtype: in which the convolutions compute, None for that of the model.
    """

    batch_norms: int
    activations: int
    residuals: int
    convolutions: int
    batch_norms_left: tuple[str, ...]
    dtype: torch.dtype | None


def accelerate(model: Model, dtype: str | torch.dtype | None = None, fold: bool = True) -> Model:
    """A copy of the model that computes the same, faster, for inference.

    * Batch norms with running statistics that directly follow a sparse convolution in a SparseSequential or
      nn.Sequential become part of its weights, and a ReLU that follows part of its kernel; so do the norms, the sum and
      the ReLU of `pointcloud.models.residual.ResidualBlock`. What a module's own `forward` combines stays as it is, and
      so does a convolution that is used in several places or carries hooks. A container whose members are folded must
      be called as a whole: the convolution then returns what the last of them returned before.
    * Weights are stored in the order in which the convolution reads them.
    * With `dtype`, sparse convolutions compute in it, with fp32 accumulation; all other modules stay in their own and
      the output has the dtype of the original's. This changes results: see `compare`.

    Args:
        model: in eval mode, anywhere on any device. It is not changed.
        dtype: torch.bfloat16 or torch.float16; None keeps the model's; "auto" takes bf16 where the device computes it
            faster (CPUs with AVX512-BF16, GPUs from compute capability 8.0), else keeps the model's.
        fold: whether to fold; without it only `dtype` and the order of the weights change.

    Returns:
        The copy, with what was done in its attribute `acceleration`, an `Acceleration`.

    Raises:
        ValueError: a model in training mode, batch norm without running statistics, an unknown dtype.
    """
    target = _dtype(dtype, model)
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"model must be in eval mode, but {training[0]} ({len(training)} modules in all) is in training mode: "
            "call model.eval() first"
        )
    fast = copy.deepcopy(model).requires_grad_(False)
    counts: Counter[str] = Counter()
    if fold:
        _check_statistics(fast)
        _Folder(fast, counts).run()
    convolutions = [module for module in fast.modules() if isinstance(module, SparseConvolution)]
    for conv in filter(_plain, convolutions):
        if target is not None:
            _cast(conv, target)
        if type(conv).forward is SparseConvolution.forward:  # another one may ask for a view of the weight
            _pack(conv)
    if target is not None:
        _meet_other_dtypes(fast, target, next((p.dtype for p in model.parameters()), target))
    left = tuple(name for name, m in fast.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    fast.acceleration = Acceleration(  # type: ignore[assignment]
        counts["batch_norms"], counts["activations"], counts["residuals"], len(convolutions), left, target
    )
    return fast


def _dtype(dtype: str | torch.dtype | None, model: nn.Module) -> torch.dtype | None:
    if dtype is None or dtype in (torch.bfloat16, torch.float16):
        return dtype
    if dtype != "auto":
        raise ValueError(f"dtype must be None, 'auto', torch.bfloat16 or torch.float16, got {dtype!r}")
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.dtype != torch.float32:
        return None
    if parameter.device.type == "cuda":
        fast = torch.cuda.get_device_capability(parameter.device) >= (8, 0)
    else:
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        fast = parameter.device.type == "cpu" and supported is not None and bool(supported())
    return torch.bfloat16 if fast else None


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            raise ValueError(
                f"batch norm {name!r} has no running statistics (track_running_stats=False): what it computes depends "
                "on the whole batch and cannot be folded; call accelerate(..., fold=False)"
            )


class _Folder:
    """Folds one model in place."""

    def __init__(self, model: nn.Module, counts: Counter[str]) -> None:
        self.model = model
        self.counts = counts
        # A module in two places computes the same in both, so it cannot take over what follows in one of them.
        self.uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))

    def run(self) -> None:
        for module in list(self.model.modules()):
            if type(module).forward in (SparseSequential.forward, nn.Sequential.forward) and not _hooked(module):
                self._sequential(module)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is ResidualBlock:
                    self._residual(parent, name, child)

    def _sequential(self, container: nn.Module) -> None:
        """Fold conv - BN - ReLU, conv - BN and conv - ReLU. Identities keep names and positions of the others."""
        entries: list[tuple[str, nn.Module | None]] = list(container._modules.items())
        none: tuple[str, nn.Module | None] = ("", None)
        for (_, conv), follower, last in zip(entries, entries[1:], [*entries[2:], none]):
            if not isinstance(conv, SparseConvolution) or not self._free(conv) or conv.activation != "none":
                continue
            name, module = follower
            if isinstance(module, nn.BatchNorm1d) and type(module) in BATCH_NORMS and not _hooked(module):
                fold_batch_norm(conv, module)
                self._replace(container, name, "batch_norms")
                name, module = last
            if isinstance(module, nn.ReLU) and type(module) in RELUS and not _hooked(module):
                conv.activation = "relu"
                self._replace(container, name, "activations")

    def _residual(self, parent: nn.Module, name: str, block: ResidualBlock) -> None:
        """Replace a block whose batch norms were folded."""
        first, second = block.net[0], block.net[3]
        rest = [block.net[i] for i in (1, 2, 4)]
        if _hooked(block) or _hooked(block.net) or not all(type(module) is Identity for module in rest):
            return
        assert isinstance(first, SparseConvolution) and isinstance(second, SparseConvolution)
        shortcut: nn.Module | None = block.downsample
        if block.downsample is not None and type(block.downsample[1]) is Identity and not _hooked(block.downsample):
            shortcut = block.downsample[0]
            assert isinstance(shortcut, SparseConvolution) and second.bias is not None and shortcut.bias is not None
            # Two biases are one: a pass over the shortcut less.
            second.bias = nn.Parameter(second.bias.detach() + shortcut.bias.detach(), requires_grad=False)
            shortcut.bias = None
        second.activation = "relu"
        fused = FusedResidualBlock(first, second, shortcut)  # type: ignore[arg-type]
        fused.train(block.training)
        parent.add_module(name, fused)
        self.counts["residuals"] += 1
        self.counts["activations"] += 1

    def _free(self, conv: SparseConvolution) -> bool:
        return self.uses[id(conv)] == 1 and _plain(conv) and type(conv).forward is SparseConvolution.forward

    def _replace(self, container: nn.Module, name: str, count: str) -> None:
        container._modules[name] = Identity().eval()
        self.counts[count] += 1


def fold_batch_norm(conv: SparseConvolution, norm: nn.BatchNorm1d) -> None:
    """Make `conv` compute `norm(conv(x))`, with the norm's running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    bias = -norm.running_mean.double() * scale
    if conv.bias is not None:
        bias = bias + conv.bias.detach().double() * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    weight = conv.weight.detach().double() * scale.view(-1, *[1] * (conv.weight.ndim - 1))
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _pack(conv: SparseConvolution) -> None:
    """Store [Cout, *k, Cin / groups] in memory as [*k, Cin / groups, Cout], which is what the kernel reads."""
    ndim = conv.weight.ndim
    there, back = [*range(1, ndim), 0], [ndim - 1, *range(ndim - 1)]
    packed = conv.weight.detach().permute(there).contiguous().permute(back)
    conv.weight = nn.Parameter(packed, requires_grad=False)


def _cast(conv: SparseConvolution, dtype: torch.dtype) -> None:
    for name, parameter in list(conv.named_parameters(recurse=False)):
        setattr(conv, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


def _meet_other_dtypes(model: nn.Module, dtype: torch.dtype, outside: torch.dtype) -> None:
    """Convolutions take any input in `dtype`, other modules with weights take rows of `dtype` in their weights' own."""
    for module in model.modules():
        own = next((p.dtype for p in module.parameters(recurse=False) if p.is_floating_point()), None)
        if isinstance(module, SparseConvolution):
            module.register_forward_pre_hook(_InputCast(own or dtype, None), with_kwargs=True)
        # Batch norm itself takes rows in bf16 with statistics in fp32.
        elif own not in (None, dtype) and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(_InputCast(own, dtype), with_kwargs=True)
    model.register_forward_hook(_OutputCast(outside, dtype))


# Hooks are classes so that a model that carries them can be copied and pickled.
@dataclass(frozen=True)
class _InputCast:
    dtype: torch.dtype
    only: torch.dtype | None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _to(args, self.dtype, self.only), _to(kwargs, self.dtype, self.only)


@dataclass(frozen=True)
class _OutputCast:
    dtype: torch.dtype
    only: torch.dtype

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return _to(output, self.dtype, self.only)


def _to(value: Any, dtype: torch.dtype, only: torch.dtype | None) -> Any:
    """Floating tensors and features (those of dtype `only`, if given), in any nesting of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and only in (None, value.dtype) else value
    if isinstance(value, SparseConvTensor):
        features = _to(value.features, dtype, only)
        return value if features is value.features else value.replace_feature(features)
    if type(value) in (tuple, list):
        return type(value)(_to(item, dtype, only) for item in value)
    if type(value) is dict:
        return {key: _to(item, dtype, only) for key, item in value.items()}
    return value


def _plain(conv: SparseConvolution) -> bool:
    """Whether the weight is a parameter of its own, free to be replaced."""
    return not _hooked(conv) and not nn.utils.parametrize.is_parametrized(conv)


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
