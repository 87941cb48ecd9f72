"""Faster inference of a user's own model: batch norm, ReLU and sums go into the convolutions, weights into bf16."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from common_models import acceleration, dtypes
from common_models.modes import check_evaluating, owns_weight
from pointcloud.acceleration.containers import BATCH_NORMS, RELUS, Folder, Report, why_bound
from pointcloud.acceleration.layer import DeferredLayer, in_kernel_order
from pointcloud.acceleration.linear import DeferredLinear
from pointcloud.acceleration.seen import Enter, Leave, Name, Seen
from pointcloud.conv import SparseConvolution
from pointcloud.tensor import SparseConvTensor

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Acceleration(acceleration.Acceleration):
    """What `accelerate` changed. `changed` and `left` name modules of the given model.

    Attributes:
        batch_norms: number of batch norms folded into the weights of the convolution before them. Of these and the
            following numbers, those that no container shows are known once a call has shown them.
        activations: number of ReLUs computed by the convolution before them.
        residuals: number of convolutions that add a sum's other operand, as the last one of a residual block does.
        concatenations: number of convolutions that read several tensors as if they were concatenated.
        convolutions: number of sparse convolutions, folded or not.
        batch_norms_left: names of the batch norms still computed on their own.
    """

    batch_norms: int = 0
    activations: int = 0
    residuals: int = 0
    concatenations: int = 0
    convolutions: int = 0
    batch_norms_left: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line: what was done."""
        return (
            f"{self.convolutions} sparse convolutions compute in {dtypes.name_of(self.dtype)} and took over "
            f"{self.batch_norms} batch norms, {self.activations} ReLUs, {self.residuals} sums and "
            f"{self.concatenations} concatenations"
        )


def accelerate(
    model: Model, *, dtype: str | torch.dtype | None = None, example: Any = None, fold: bool = True
) -> Model:
    """A copy of the model that computes the same, faster, for inference.

    * Batch norms with running statistics, ReLU, sums and concatenations of channels become part of the convolution
      before or after them, whatever `forward` they stand in: a block's own, functions of torch, `x + y`, `out += x`,
      `replace_feature`. A convolution gives features that are computed when they are read; what follows meanwhile is
      remembered and computed with them, in one pass. So it is found anew in each call, and a call that takes another
      way than the ones before gets the values of that way. Only the report needs to have seen a call: until then
      `left` names what no call has shown.
    * Batch norms and ReLUs that directly follow a sparse convolution in a SparseSequential or nn.Sequential, and
      `pointcloud.models.residual.ResidualBlock`, are replaced before any call. A container whose members are folded
      must be called as a whole: the convolution then returns what the last of them returned before.
    * Under torch.compile, torch.export, torch.jit.trace, autocast and where a gradient is taken, only the latter.
    * Weights are stored in the order in which the convolution reads them.
    * With `dtype`, sparse convolutions compute in it, with fp32 accumulation; all other modules stay in their own and
      the output has the dtype of the original's. This changes results: see `compare`.

    Args:
        model: in evaluation mode, on any device. It is not changed; `restore` gives it back.
        dtype: None keeps the model's. "auto" is the fastest on the model's device: bf16 for a model in fp32 where the
            device multiplies bf16 (CPUs with AVX512-BF16 or AMX, GPUs from compute capability 8.0). Else "fp32",
            "bf16", "fp16" or the torch dtype.
        example: what the model is called with, one argument or a tuple of them: it is called once, so that
            `acceleration` is complete.
        fold: whether to fold; without it only `dtype` and the order of the weights change.

    Returns:
        The copy, with what was done in its attribute `acceleration`, an `Acceleration`.

    Raises:
        TypeError: a dtype that is neither a name nor a torch dtype.
        ValueError: a model in training mode or accelerated already, batch norm without running statistics, a dtype
            that is unknown or not among those above.

    Example:
        >>> import pointcloud
        >>> from pointcloud import SparseSequential, SubMConv3d
        >>> from torch import nn
        >>> model = SparseSequential(SubMConv3d(4, 16, 3, bias=False), nn.BatchNorm1d(16), nn.ReLU()).eval()
        >>> faster = pointcloud.accelerate(model, dtype="auto")
        >>> [type(module).__name__ for module in faster]
        ['SubMConv3d', 'Identity', 'Identity']
    """
    acceleration.check_not_accelerated(model)
    check_evaluating(model)
    target = dtypes.resolve(dtype, model)
    if fold:
        _check_statistics(model)
    fast = copy.deepcopy(model).requires_grad_(False)
    report = Report(fast)
    if fold:
        Folder(fast, report).run()
    convolutions = [module for module in fast.modules() if isinstance(module, SparseConvolution)]
    casting = dtype is not None and any(conv.weight.dtype != target for conv in convolutions)
    for conv in convolutions:
        if not owns_weight(conv):
            report.leave(conv, why_bound(conv))
            continue
        if casting:
            _cast(conv, target)
            report.change(conv)
        if type(conv).forward is SparseConvolution.forward:
            if conv.output_first_weight is conv.weight:  # else, a kernel of size 1, it lies so
                conv.weight = nn.Parameter(in_kernel_order(conv.weight.detach()), requires_grad=False)
            report.change(conv)
        elif not casting:
            report.leave(conv, "its class has a forward of its own, which may read the weight in another order")
    waiting = _waiting(fast) if fold else []
    report.leave_the_rest(fast, fold, bool(waiting))
    made = Acceleration(
        dtype=target,
        changed=report.changed(),
        left=report.left(),
        original=model,
        batch_norms=report.counts["batch_norms"],
        activations=report.counts["activations"],
        residuals=report.counts["residuals"],
        convolutions=len(convolutions),
        batch_norms_left=tuple(
            name for name, m in fast.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        ),
    )
    if casting:
        _meet_other_dtypes(fast, target, dtypes.own(model))
    if waiting:
        _defer(fast, waiting, report, made)
    fast.acceleration = made  # type: ignore[assignment]
    if example is not None:
        with torch.no_grad():
            fast(*example) if isinstance(example, tuple) else fast(example)
    return fast


def _waiting(model: nn.Module) -> list[nn.Module]:
    """The layers that can wait for what follows them; none where there is no sparse convolution among them."""
    convolutions = [
        module
        for module in model.modules()
        if isinstance(module, SparseConvolution)
        and owns_weight(module)
        and type(module).forward is SparseConvolution.forward
    ]
    linears = [module for module in model.modules() if type(module) is nn.Linear and owns_weight(module)]
    return [*convolutions, *linears] if convolutions else []


def _defer(model: nn.Module, waiting: list[nn.Module], report: Report, made: Acceleration) -> None:
    """Let layers of a network wait for what follows them."""
    seen = Seen()
    for layer in waiting:
        name = report.names.get(id(layer), "")
        if isinstance(layer, SparseConvolution):
            layer.deferral = DeferredLayer(name, seen)
        else:
            layer.register_forward_pre_hook(DeferredLinear(name, seen))
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, *RELUS)):
            module.register_forward_pre_hook(Name(report.names.get(id(module), ""), seen))
    model.register_forward_pre_hook(Enter(seen), prepend=True)
    leave = Leave(seen, _Reporting(made, tuple(report.modules)))
    model.register_forward_hook(leave, with_kwargs=True, always_call=True)


@dataclass(frozen=True)
class _Reporting:
    """Brings a network's report up to date.

    Attributes:
        before: what was known before any call.
        names: of all modules, in their order.
    """

    before: Acceleration
    names: tuple[str, ...]

    def __call__(self, model: nn.Module, seen: Seen) -> None:
        before = self.before
        norms = [name for name in seen.batch_norms if name not in seen.left]
        taken = {*norms, *(name for name in seen.activations if name not in seen.left)}
        left = {name: why for name, why in before.left.items() if name not in taken} | seen.left
        changed = {*before.changed, *taken, *seen.relus, *seen.sums, *seen.joins}
        model.acceleration = dataclasses.replace(  # type: ignore[assignment]
            before,
            changed=[name for name in self.names if name in changed],
            left={name: left[name] for name in self.names if name in left},
            batch_norms=before.batch_norms + len(norms),
            activations=before.activations + len(seen.relus),
            residuals=before.residuals + len(seen.sums),
            concatenations=len(seen.joins),
            batch_norms_left=tuple(name for name in before.batch_norms_left if name not in norms),
        )


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            raise ValueError(
                f"batch norm {name!r} has no running statistics (track_running_stats=False): what it computes depends "
                "on the whole batch and cannot be folded; call accelerate(..., fold=False)"
            )


def _cast(conv: SparseConvolution, dtype: torch.dtype) -> None:
    for name, parameter in list(conv.named_parameters(recurse=False)):
        setattr(conv, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


def _meet_other_dtypes(model: nn.Module, dtype: torch.dtype, outside: torch.dtype) -> None:
    """Convolutions take any input in `dtype`, other modules with weights take rows of `dtype` in their weights' own."""
    for module in model.modules():
        own = next((p.dtype for p in module.parameters(recurse=False) if p.is_floating_point()), None)
        if isinstance(module, SparseConvolution):
            module.register_forward_pre_hook(dtypes.InputCast(own or dtype, leaf=_cast_features), with_kwargs=True)
        # Batch norm itself takes rows in bf16 with statistics in fp32.
        elif own not in (None, dtype) and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(dtypes.InputCast(own, dtype, _cast_features), with_kwargs=True)
    model.register_forward_hook(dtypes.OutputCast(outside, dtype, _cast_features))


def _cast_features(value: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    """A sparse tensor with its features cast, the very object where they have their dtype already."""
    if not isinstance(value, SparseConvTensor):
        return value
    features = cast(value.features)
    return value if features is value.features else value.replace_feature(features)
