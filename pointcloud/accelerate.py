"""Faster inference of a user's own model: batch norm, ReLU and sums go into the convolutions, weights into bf16."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from common_models import acceleration, dtypes
from common_models.folding import fold_batch_norm
from common_models.modes import check_evaluating, is_hooked, owns_weight
from pointcloud.conv import SparseConvolution
from pointcloud.models.residual import FusedResidualBlock, ResidualBlock
from pointcloud.modules import Identity, SparseBatchNorm, SparseReLU, SparseSequential
from pointcloud.tensor import SparseConvTensor

BATCH_NORMS = (nn.BatchNorm1d, SparseBatchNorm)
RELUS = (nn.ReLU, SparseReLU)
# Activations that a person may expect to be folded like ReLU.
OTHER_ACTIVATIONS = (
    nn.ELU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid, nn.Tanh,
)  # fmt: skip

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Acceleration(acceleration.Acceleration):
    """What `accelerate` changed. `changed` and `left` name modules of the given model.

    Attributes:
        batch_norms: number of batch norms folded into the weights of the convolution before them.
        activations: number of ReLUs computed by the convolution before them.
        residuals: number of sums of a residual block computed by its second convolution.
        convolutions: number of sparse convolutions, folded or not.
        batch_norms_left: names of the batch norms still computed on their own.
    """

    batch_norms: int = 0
    activations: int = 0
    residuals: int = 0
    convolutions: int = 0
    batch_norms_left: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line: what was done."""
        return (
            f"{self.convolutions} sparse convolutions compute in {dtypes.name_of(self.dtype)} and took over "
            f"{self.batch_norms} batch norms, {self.activations} ReLUs and {self.residuals} sums"
        )


def accelerate(model: Model, *, dtype: str | torch.dtype | None = None, fold: bool = True) -> Model:
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
        model: in evaluation mode, on any device. It is not changed; `restore` gives it back.
        dtype: None keeps the model's. "auto" is the fastest on the model's device: bf16 for a model in fp32 where the
            device multiplies bf16 (CPUs with AVX512-BF16 or AMX, GPUs from compute capability 8.0). Else "fp32",
            "bf16", "fp16" or the torch dtype.
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
    report = _Report(fast)
    if fold:
        _Folder(fast, report).run()
    convolutions = [module for module in fast.modules() if isinstance(module, SparseConvolution)]
    casting = dtype is not None and any(conv.weight.dtype != target for conv in convolutions)
    for conv in convolutions:
        if not owns_weight(conv):
            report.leave(conv, _why_bound(conv))
            continue
        if casting:
            _cast(conv, target)
            report.change(conv)
        if type(conv).forward is SparseConvolution.forward:
            _pack(conv)
            report.change(conv)
        elif not casting:
            report.leave(conv, "its class has a forward of its own, which may read the weight in another order")
    if casting:
        _meet_other_dtypes(fast, target, dtypes.own(model))
    report.leave_the_rest(fast, fold)
    fast.acceleration = Acceleration(  # type: ignore[assignment]
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
    return fast


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            raise ValueError(
                f"batch norm {name!r} has no running statistics (track_running_stats=False): what it computes depends "
                "on the whole batch and cannot be folded; call accelerate(..., fold=False)"
            )


class _Report:
    """What became of each module of the model, by its name before anything was replaced."""

    def __init__(self, model: nn.Module) -> None:
        # The modules are kept: what is replaced must not be freed, its id would be given to another.
        self.modules = dict(model.named_modules())
        self.names = {id(module): name for name, module in self.modules.items()}
        self.counts: Counter[str] = Counter()
        self._changed: set[str] = set()
        self._left: dict[str, str] = {}

    def change(self, module: nn.Module, count: str | None = None) -> None:
        self._changed.add(self.names[id(module)])
        if count is not None:
            self.counts[count] += 1

    def leave(self, module: nn.Module, why: str) -> None:
        self._left.setdefault(self.names[id(module)], why)

    def leave_the_rest(self, model: nn.Module, fold: bool) -> None:
        """Give a reason for every batch norm, activation and residual block that is still there without one."""
        for module in model.modules():
            if isinstance(module, OTHER_ACTIVATIONS):
                self.leave(module, "a sparse convolution computes no activation but ReLU")
            elif not isinstance(module, (nn.modules.batchnorm._BatchNorm, *RELUS, ResidualBlock)):
                continue
            elif not fold:
                self.leave(module, "fold=False")
            elif not isinstance(module, ResidualBlock):
                self.leave(
                    module, "no sparse convolution stands directly before it in a SparseSequential or nn.Sequential"
                )
            elif type(module) is ResidualBlock:
                self.leave(module, "it is the model itself, not a part of it")
            else:
                self.leave(module, f"its class, {type(module).__name__}, is derived from ResidualBlock")

    def changed(self) -> list[str]:
        return [name for name in self.modules if name in self._changed]

    def left(self) -> dict[str, str]:
        return {name: self._left[name] for name in self.modules if name in self._left}


class _Folder:
    """Folds one model in place."""

    def __init__(self, model: nn.Module, report: _Report) -> None:
        self.model = model
        self.report = report
        # A module in two places computes the same in both, so it cannot take over what follows in one of them.
        self.uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))

    def run(self) -> None:
        for module in list(self.model.modules()):
            if isinstance(module, (SparseSequential, nn.Sequential)):
                self._sequential(module)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is ResidualBlock:
                    self._residual(parent, name, child)

    def _sequential(self, container: nn.Module) -> None:
        """Fold conv - BN - ReLU, conv - BN and conv - ReLU. Identities keep names and positions of the others."""
        entries: list[tuple[str, nn.Module | None]] = list(container._modules.items())
        nothing: tuple[str, nn.Module | None] = ("", None)
        for (_, conv), follower, last in zip(entries, entries[1:], [*entries[2:], nothing]):
            if not isinstance(conv, SparseConvolution):
                continue
            name, module = follower
            why = self._why_not(container, conv)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if not self._takes(module, BATCH_NORMS, why):
                    self._leave_relu(last[1])
                    continue
                fold_batch_norm(conv, module)
                self._replace(container, name, conv, "batch_norms")
                name, module = last
            if isinstance(module, nn.ReLU) and self._takes(module, RELUS, why):
                conv.activation = "relu"
                self._replace(container, name, conv, "activations")

    def _takes(self, module: nn.Module, classes: tuple[type[nn.Module], ...], why: str | None) -> bool:
        """Whether the convolution before the module takes it over; the reason is noted where it does not."""
        if type(module) not in classes:
            why = f"it is no {classes[0].__name__} but a {type(module).__name__}"
        elif is_hooked(module):
            why = "it carries hooks"
        if why is not None:
            self.report.leave(module, why)
        return why is None

    def _leave_relu(self, module: nn.Module | None) -> None:
        if isinstance(module, nn.ReLU):
            self.report.leave(module, "the batch norm before it was left")

    def _why_not(self, container: nn.Module, conv: SparseConvolution) -> str | None:
        """Why nothing may become part of a convolution in this container, or None."""
        if type(container).forward not in (SparseSequential.forward, nn.Sequential.forward):
            return f"the forward of its container, a {type(container).__name__}, is its own"
        if is_hooked(container):
            return "its container carries hooks"
        if self.uses[id(conv)] > 1:
            return "the convolution before it is used in several places"
        if not owns_weight(conv):
            return f"the convolution before it is left: {_why_bound(conv)}"
        if type(conv).forward is not SparseConvolution.forward:
            return f"the convolution before it is a {type(conv).__name__} with a forward of its own"
        if conv.activation != "none":
            return f"the convolution before it ends with an activation, {conv.activation}"
        return None

    def _residual(self, parent: nn.Module, name: str, block: ResidualBlock) -> None:
        """Replace a block whose batch norms were folded."""
        first, second = block.net[0], block.net[3]
        rest = [block.net[i] for i in (1, 2, 4)]
        if is_hooked(block) or is_hooked(block.net):
            self.report.leave(block, "it carries hooks")
            return
        if not all(type(module) is Identity for module in rest):
            self.report.leave(block, "one of its batch norms or its ReLU was left")
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
        self.report.change(block, "residuals")
        self.report.counts["activations"] += 1

    def _replace(self, container: nn.Module, name: str, conv: nn.Module, count: str) -> None:
        self.report.change(container._modules[name], count)  # type: ignore[arg-type]
        self.report.change(conv)
        container._modules[name] = Identity().eval()


def _why_bound(conv: SparseConvolution) -> str:
    """Why a convolution's weight is not free to be replaced."""
    if is_hooked(conv):
        return "it carries hooks"
    return "its weight is no parameter of its own (a parametrisation, or a tensor that other code sets)"


def _pack(conv: SparseConvolution) -> None:
    """Store [Cout, *k, Cin / groups] in memory as [*k, Cin / groups, Cout], which is what the kernel reads."""
    if conv.output_first_weight is not conv.weight:
        return  # a kernel of size 1 lies so
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
