"""Faster inference of a user's own model: batch norm, ReLU and sums go into the convolutions, weights into bf16."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from common_models import acceleration, dtypes
from common_models.dtypes import InputCast, OutputCast, name_of
from common_models.folding import fold_batch_norm
from common_models.modes import check_evaluating, is_hooked, owns_weight
from pointcloud.conv import SparseConvolution
from pointcloud.models.residual import FusedResidualBlock, ResidualBlock
from pointcloud.modules import Identity, SparseBatchNorm, SparseReLU, SparseSequential
from pointcloud.tensor import SparseConvTensor

BATCH_NORMS = (nn.BatchNorm1d, SparseBatchNorm)
RELUS = (nn.ReLU, SparseReLU)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Acceleration(acceleration.Acceleration):
    """What `accelerate` changed.

    Attributes:
        batch_norms: batch norms folded into the weights of the convolution before them.
        activations: ReLUs computed by the convolution before them.
        residuals: sums of a residual block computed by its second convolution.
        convolutions: sparse convolutions, folded or not.
        batch_norms_left: names of the batch norms still computed on their own.
    """

    batch_norms: int = 0
    activations: int = 0
    residuals: int = 0
    convolutions: int = 0
    batch_norms_left: tuple[str, ...] = ()

    def summary(self) -> str:
        return (
            f"{self.batch_norms} batch norms, {self.activations} activations and {self.residuals} residual sums in "
            f"{self.convolutions} convolutions; computes in {name_of(self.dtype)}"
        )


def accelerate(model: Model, *, dtype: str | torch.dtype | None = None, fold: bool = True) -> Model:
    """A copy of the model that computes the same, faster, for inference.

    * Batch norms with running statistics that directly follow a sparse convolution in a SparseSequential or
      nn.Sequential become part of its weights, and a ReLU that follows part of its kernel; so do the norms, the sum and
      the ReLU of `pointcloud.models.residual.ResidualBlock`. What a module's own `forward` combines stays as it is, and
      so does a convolution that is used in several places or carries hooks. A container whose members are folded must
      be called as a whole: the convolution then returns what the last of them returned before.
    * Weights are stored in the order in which the convolution reads them.
    * In another dtype than the model's own, sparse convolutions compute in it, with fp32 accumulation; all other
      modules stay in their own and the output has the dtype of the original's. This changes results: see `compare`.

    Args:
        model: in evaluation mode, on any device. It is not changed.
        dtype: None keeps the model's own; "auto" takes bf16 where the device multiplies it (CPUs with AVX512-BF16, GPUs
            from compute capability 8.0), else keeps the model's own; "fp32", "bf16", "fp16" or a torch dtype.
        fold: whether to fold; without it only `dtype` and the order of the weights change.

    Returns:
        The copy, with what was done in its attribute `acceleration`, an `Acceleration`.

    Raises:
        TypeError: a dtype that is neither a name nor a torch dtype.
        ValueError: a model in training mode or accelerated already, batch norm without running statistics, an unknown
            dtype.
    """
    check_evaluating(model)
    acceleration.check_not_accelerated(model)
    own = dtypes.own(model)
    target = dtypes.resolve(dtype, model)
    fast = copy.deepcopy(model).requires_grad_(False)
    done = _Done()
    if fold:
        _check_statistics(fast)
        _Folder(fast, done).run()
    convolutions = {name: module for name, module in fast.named_modules() if isinstance(module, SparseConvolution)}
    for name, conv in convolutions.items():
        if not owns_weight(conv):
            done.left[name] = "it carries hooks or is parametrised: its weights stay as they are"
            continue
        if target != own:
            _cast(conv, target)
        done.changed.append(name)
        if type(conv).forward is SparseConvolution.forward:  # another one may ask for a view of the weight
            _pack(conv)
    if target != own:
        _meet_other_dtypes(fast, target, own)
    norms = [name for name, m in fast.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    why = "no convolution that serves it alone stands before it in a sequence" if fold else "fold=False was asked"
    done.left.update(dict.fromkeys(norms, why))
    fast.acceleration = Acceleration(  # type: ignore[assignment]
        dtype=target,
        changed=done.changed,
        left=done.left,
        original=model,
        batch_norms=done.counts["batch_norms"],
        activations=done.counts["activations"],
        residuals=done.counts["residuals"],
        convolutions=len(convolutions),
        batch_norms_left=tuple(norms),
    )
    return fast


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            raise ValueError(
                f"batch norm {name!r} has no running statistics (track_running_stats=False): what it computes depends "
                "on the whole batch and cannot be folded; call accelerate(..., fold=False)"
            )


@dataclass
class _Done:
    """What was done so far."""

    counts: Counter[str] = field(default_factory=Counter)
    changed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


class _Folder:
    """Folds one model in place."""

    def __init__(self, model: nn.Module, done: _Done) -> None:
        self.model = model
        self.counts = done.counts
        # A module in two places computes the same in both, so it cannot take over what follows in one of them.
        self.uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))

    def run(self) -> None:
        for module in list(self.model.modules()):
            if type(module).forward in (SparseSequential.forward, nn.Sequential.forward) and not is_hooked(module):
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
            if isinstance(module, nn.BatchNorm1d) and type(module) in BATCH_NORMS and not is_hooked(module):
                fold_batch_norm(conv, module)
                self._replace(container, name, "batch_norms")
                name, module = last
            if isinstance(module, nn.ReLU) and type(module) in RELUS and not is_hooked(module):
                conv.activation = "relu"
                self._replace(container, name, "activations")

    def _residual(self, parent: nn.Module, name: str, block: ResidualBlock) -> None:
        """Replace a block whose batch norms were folded."""
        first, second = block.net[0], block.net[3]
        rest = [block.net[i] for i in (1, 2, 4)]
        if is_hooked(block) or is_hooked(block.net) or not all(type(module) is Identity for module in rest):
            return
        assert isinstance(first, SparseConvolution) and isinstance(second, SparseConvolution)
        shortcut: nn.Module | None = block.downsample
        if block.downsample is not None and type(block.downsample[1]) is Identity and not is_hooked(block.downsample):
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
        return self.uses[id(conv)] == 1 and owns_weight(conv) and type(conv).forward is SparseConvolution.forward

    def _replace(self, container: nn.Module, name: str, count: str) -> None:
        container._modules[name] = Identity().eval()
        self.counts[count] += 1


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
            module.register_forward_pre_hook(InputCast(own or dtype, leaf=_rows), with_kwargs=True)
        # Batch norm itself takes rows in bf16 with statistics in fp32.
        elif own not in (None, dtype) and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(InputCast(own, dtype, _rows), with_kwargs=True)
    model.register_forward_hook(OutputCast(outside, dtype, _rows))


def _rows(value: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    """A SparseConvTensor with its features cast."""
    if not isinstance(value, SparseConvTensor):
        return value
    features = cast(value.features)
    return value if features is value.features else value.replace_feature(features)
