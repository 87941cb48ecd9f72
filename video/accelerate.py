"""The user's own network, faster on the CPU: batch norms folded, memory channels-last, bf16 where the CPU has it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from common_models.tracing import SIDES
from video import folding
from video.models import TSM
from video.packed_conv import PackedConv2d, packable
from video.shift import TemporalShift

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Their statistics stay in fp32; torch normalises bf16 with them.
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
# Entrances besides forward that our own networks have: Stream calls this one.
_ENTRANCES = ("frame_logits",)


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` changed.

    Attributes:
        folded: names of the batch norms that are now part of the convolution before them.
        activations: names of the activations that convolution computes as well.
        left: why, by name, for each batch norm that is still computed on its own.
        packed: number of convolutions whose weights lie in the library's own order.
        dtype: in which the network computes.
        memory_format: of weights and activations.
    """

    folded: tuple[str, ...]
    activations: tuple[str, ...]
    left: dict[str, str]
    packed: int
    dtype: torch.dtype
    memory_format: torch.memory_format

    def __str__(self) -> str:
        lines = [
            f"{len(self.folded)} batch norms and {len(self.activations)} activations in convolutions, {self.packed} "
            f"convolutions packed; computes in {str(self.dtype).removeprefix('torch.')}, {self.memory_format}"
        ]
        lines += [f"  left: {name}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def accelerate(model: nn.Module, dtype: str | torch.dtype | None = "auto", example: Any = None) -> nn.Module:
    """A copy of a network that gives the same answers sooner, for inference.

    Batch norms go into the convolutions before them where torch.export's graph proves that nothing else reads what lies
    between, and so do ReLU, ReLU6 and hard swish on the CPU; weights become channels-last, unless forward takes views
    that this forbids; in bf16 or fp16 inputs are cast and outputs return in the dtype of the model. The graph is of the
    example's path: a forward that takes another one for other shapes must be given `example` of the shape it is used
    with. A part of the folded network that is called on its own (a convolution without its norm) gives other values
    than before. What a rounding changes, measure with `compare`.

    Args:
        model: in evaluation mode, on any device; not changed.
        dtype: torch.float32, torch.bfloat16 or torch.float16; "auto" takes bf16 where the device multiplies it and the
            model is fp32, else the model's own, as None does.
        example: a tensor or a tuple of arguments of forward; None for black frames [T, C, side, side].

    Returns:
        The copy, of the same class, with attribute `acceleration`, an Acceleration. Stream runs it, too. It keeps its
        dtype: after `.float()` or the like it raises ValueError when it is called.

    Raises:
        ValueError: a model in training mode, an unknown dtype, or no example where black frames are not accepted.
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"model must be in evaluation mode, but {training[0]!r} is training: call model.eval() first")
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    target = _dtype(dtype, model, own)
    fast = copy.deepcopy(model).requires_grad_(False)
    found, arguments = _find(fast, example)
    memory_format = torch.channels_last
    activations, n_packed = _rebuild(fast, found, own, target, memory_format)
    if arguments is not None and not _runs(fast, arguments, target):
        # It takes a view of its maps as they would lie in memory otherwise, as x.view(n, -1) after a pool does.
        fast, memory_format = copy.deepcopy(model).requires_grad_(False), torch.contiguous_format
        activations, n_packed = _rebuild(fast, found, own, target, memory_format)
    if target != own:
        fast.register_forward_pre_hook(_InputCast(target, _has(fast, target)), with_kwargs=True)
        fast.register_forward_hook(_OutputCast(own, target))
        for entrance in _ENTRANCES:
            if callable(getattr(type(fast), entrance, None)):
                setattr(fast, entrance, _Entrance(fast, entrance, own, target))
    fast.acceleration = Acceleration(  # type: ignore[assignment]
        tuple(found.batch_norms), activations, found.left, n_packed, target, memory_format
    )
    return fast


def _dtype(dtype: str | torch.dtype | None, model: nn.Module, own: torch.dtype) -> torch.dtype:
    if dtype is None:
        return own
    if isinstance(dtype, torch.dtype) and dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise ValueError(f"dtype must be None, 'auto', torch.float32, torch.bfloat16 or torch.float16, got {dtype!r}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.bfloat16 if own == torch.float32 and has_bf16(device) else own


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # oneDNN alone does not tell: it counts CPUs that only convert bf16.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())


def _find(model: nn.Module, example: Any) -> tuple[folding.Findings, tuple[Any, ...] | None]:
    """What can be folded, and arguments of forward; None for a network that has nothing to change."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Conv2d) for module in model.modules()):
        return folding.Findings(), None
    arguments = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        arguments = (_black_frames(model),) if example is None else arguments
        return folding.find(model, arguments), arguments


def _rebuild(
    model: nn.Module, found: folding.Findings, own: torch.dtype, target: torch.dtype, memory_format: torch.memory_format
) -> tuple[tuple[str, ...], int]:
    """Change a network in place; the activations that convolutions compute, and the number of packed convolutions."""
    for name, convolution in found.batch_norms.items():
        folding.fold_batch_norm(model.get_submodule(convolution), model.get_submodule(name))
        folding.replace(model, name, nn.Identity().eval())
    if memory_format == torch.channels_last:
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
    _cast_parameters(model, own, target)
    # The packed convolution gives its maps channels-last.
    return _pack(model, found) if memory_format == torch.channels_last else ((), 0)


def _runs(model: nn.Module, arguments: tuple[Any, ...], dtype: torch.dtype) -> bool:
    """Whether a rebuilt network takes these arguments."""
    try:
        with torch.no_grad():
            model(*tree_map(_InputCast(dtype).cast, arguments))
    except RuntimeError:
        return False
    return True


def _black_frames(model: nn.Module) -> Tensor:
    """Frames that the model accepts: whole clips of each of its shifts, and of its consensus."""
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = 3 if convolution is None else convolution.in_channels * (convolution.groups == 1) or 3
    lengths = [module.num_segments for module in model.modules() if isinstance(module, TSM | TemporalShift)]
    frames = math.lcm(*lengths)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    error: Exception | None = None
    # One frame of a batch is where a network would branch, and what the exporter would take for a constant.
    for side in SIDES:
        example = parameter.new_zeros(max(frames, 2), channels, side, side)
        try:
            model(example)
            return example
        except Exception as raised:  # whatever the user's network raises on a size it does not take
            error = error or raised
    raise ValueError(
        f"example must be given: the model accepts no frames [{max(frames, 2)}, {channels}, side, side]; side "
        f"{SIDES[0]} raised {type(error).__name__}: {error}"
    )


def _cast_parameters(model: nn.Module, own: torch.dtype, target: torch.dtype) -> None:
    for module in model.modules():
        if not isinstance(module, _NORMS):
            groups: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in groups:
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.dtype == own:
                        cast = tensor.detach().to(target)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        tensors[name] = nn.Parameter(cast, requires_grad=False) if is_parameter else cast


def _pack(model: nn.Module, found: folding.Findings) -> tuple[tuple[str, ...], int]:
    """Replace convolutions by packed ones with their activations; the activations and the number of convolutions."""
    after = {convolution: name for name, convolution in found.activations.items()}
    places = [name for name, module in model.named_modules(remove_duplicate=False) if packable(module)]
    made: dict[int, PackedConv2d] = {}
    activations = []
    for name in places:
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        if id(conv) not in made:
            activation = folding.ACTIVATIONS[type(model.get_submodule(after[name]))] if name in after else "none"
            made[id(conv)] = PackedConv2d.of(conv, activation)
            if name in after:
                folding.replace(model, after[name], nn.Identity().eval())
                activations.append(after[name])
        if name:
            folding.replace(model, name, made[id(conv)])
    return tuple(activations), len(made)


def _has(model: nn.Module, dtype: torch.dtype) -> bool:
    return any(p.dtype == dtype for p in model.parameters())


def _check_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """ValueError where someone cast an accelerated network, which computes in `dtype`, to another one."""
    if _has(model, dtype):
        return
    found = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
    raise ValueError(
        f"the network was accelerated to compute in {str(dtype).removeprefix('torch.')}, but its parameters were cast "
        f"to {found} since: cast the model it was made from, and accelerate that with the dtype you want"
    )


# Hooks are classes so that a model that carries them can be copied and pickled.
@dataclass(frozen=True)
class _InputCast:
    dtype: torch.dtype
    checks: bool = False

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if self.checks:
            _check_dtype(module, self.dtype)
        return tree_map(self.cast, (args, kwargs))

    def cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True)
class _OutputCast:
    dtype: torch.dtype
    only: torch.dtype

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(self.cast, output)

    def cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.dtype == self.only else value


@dataclass(frozen=True)
class _Entrance:
    """A method of a model besides forward, with the casts that forward has."""

    model: nn.Module
    name: str
    own: torch.dtype
    target: torch.dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _check_dtype(self.model, self.target)
        args, kwargs = tree_map(_InputCast(self.target).cast, (args, kwargs))
        output = getattr(type(self.model), self.name)(self.model, *args, **kwargs)
        return tree_map(_OutputCast(self.own, self.target).cast, output)


@dataclass(frozen=True)
class Agreement:
    """Outputs of two models on the same inputs.

    Attributes:
        top1: share of rows whose largest element is the same one, 1.0 where there are no rows.
        max_difference: largest absolute difference of any element.
        mean_difference: mean absolute difference.
        relative_difference: the largest one in units of the first model's largest absolute element.
        rows: number of rows compared.
    """

    top1: float
    max_difference: float
    mean_difference: float
    relative_difference: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.top1:.2%} of {self.rows} rows agree in their largest element; largest difference "
            f"{self.max_difference:.3g} ({self.relative_difference:.2e} of the largest value), mean "
            f"{self.mean_difference:.3g}"
        )


@torch.inference_mode()
def compare(model: nn.Module, accelerated: nn.Module, data: Any) -> Agreement:
    """Run both models on the same inputs.

    Args:
        data: one input, or an iterable of inputs; a tuple is one input of several arguments. Each model returns
            logits [N, C], or an output whose first floating tensor they are.

    Raises:
        ValueError: outputs without such a tensor, or of different shapes.
    """
    inputs: Iterable[Any] = [data] if isinstance(data, (Tensor, tuple)) else data
    largest = difference = total = 0.0
    same = rows = elements = 0
    for item in inputs:
        arguments = item if isinstance(item, tuple) else (item,)
        expected, got = _logits(model(*arguments)), _logits(accelerated(*arguments))
        if expected.shape != got.shape:
            raise ValueError(f"the outputs must have one shape, got {list(expected.shape)} and {list(got.shape)}")
        if expected.numel() == 0:
            continue
        # NaN compares as unequal to anything: it must not hide behind a maximum.
        gap = (expected - got).abs().nan_to_num(nan=math.inf, posinf=math.inf)
        difference = max(difference, float(gap.max()))
        total += float(gap.sum())
        largest = max(largest, float(expected.abs().max()))
        same += int((expected.argmax(1) == got.argmax(1)).sum())
        rows += len(expected)
        elements += expected.numel()
    relative = difference / largest if largest > 0 else difference
    return Agreement(same / rows if rows else 1.0, difference, total / max(elements, 1), relative, rows)


def _logits(output: Any) -> Tensor:
    """The first floating tensor of an output, as fp64 [N, C]."""
    found = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2]
    if not found:
        raise ValueError(f"a model's output must hold a floating tensor [N, C], got {type(output).__name__}")
    return found[0].double().flatten(1)
