"""The user's own network, faster on the CPU: batch norms folded, memory channels-last, bf16 where the CPU has it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from common_models import acceleration, dtypes
from common_models.acceleration import check_not_accelerated, restore
from common_models.agreement import Agreement, compare_rows
from common_models.dtypes import InputCast, OutputCast
from common_models.folding import fold_batch_norm, replace_module
from common_models.modes import check_evaluating
from common_models.timing import best_times
from common_models.tracing import SIDES
from video import folding
from video.models import TSM
from video.packed_conv import PackedConv2d, packable
from video.shift import TemporalShift

__all__ = ["Acceleration", "Agreement", "accelerate", "compare", "restore"]

# Their statistics stay in fp32; torch normalises bf16 with them.
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
# Entrances besides forward that our own networks have: Stream calls this one.
_ENTRANCES = ("frame_logits",)
# A packed convolution stays where it takes at most this share of the plain one's time.
_PAYS = 0.95
# Passes over all convolutions, and the seconds in which they begin.
_PASSES, _WITHIN = 7, 0.2


@dataclass(frozen=True, kw_only=True)
class Acceleration(acceleration.Acceleration):
    """What `accelerate` changed in a network of images.

    Attributes:
        folded: names of the batch norms that are now part of the convolution before them.
        activations: names of the activations that convolution computes as well.
        packed: number of convolutions whose weights lie in the library's own order.
        memory_format: of weights and activations.
    """

    folded: tuple[str, ...] = field(default=())
    activations: tuple[str, ...] = field(default=())
    packed: int = 0
    memory_format: torch.memory_format = torch.contiguous_format

    def summary(self) -> str:
        """One line: what was done."""
        return (
            f"{len(self.folded)} batch norms and {len(self.activations)} activations in convolutions, {self.packed} "
            f"convolutions packed; computes in {dtypes.name_of(self.dtype)}, {self.memory_format}"
        )


def accelerate(
    model: nn.Module, *, dtype: str | torch.dtype | None = None, example: Any = None, adapt: bool = True
) -> nn.Module:
    """Copy a network into one that gives the same answers sooner, for inference.

    Batch norms go into the convolutions before them where torch.export's graph proves that nothing else reads what lies
    between, and so do ReLU, ReLU6 and hard swish on the CPU; weights become channels-last, unless forward takes views
    that this forbids; in another dtype inputs are cast and outputs return in the dtype of the model. The graph is of
    the example's path: a forward that takes another one for other shapes must be given `example` of the shape it is
    used with. A part of the folded network that is called on its own (a convolution without its norm) gives other
    values than before. What a rounding changes, measure with `compare`.

    Args:
        model: in evaluation mode, on any device; not changed.
        dtype: None for the model's own, "auto" for the fastest that the device computes, a name as "bf16", or a torch
            dtype.
        example: a tensor or a tuple of arguments of forward; None for black frames [T, C, side, side].
        adapt: on a CPU, measure each convolution on a single frame of the example's size, as a live network runs it,
            and leave it unpacked where packing does not pay: small ones take longer to call than to compute. The
            choice, and with it the last bits of the answers, depends on these times; False packs them all.

    Returns:
        The copy, of the same class, with attribute `acceleration`, an Acceleration; `restore` gives the original.
        Stream runs it, too. It keeps its dtype: after `.float()` or the like it raises ValueError when it is called.

    Raises:
        TypeError: `model` is not a module, or `dtype` neither None, a name nor a torch dtype.
        ValueError: a model in training mode or accelerated already, an unknown dtype, or no example where black frames
            are not accepted.

    Example:
        >>> import torch, video
        >>> model = video.models.ResNet(18, num_classes=5).eval()
        >>> frames = torch.rand(2, 3, 64, 64)
        >>> faster = video.accelerate(model, dtype=None, example=frames)
        >>> torch.allclose(faster(frames), model(frames), rtol=1e-3, atol=1e-4)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_evaluating(model)
    check_not_accelerated(model)
    own, target = dtypes.own(model), dtypes.resolve(dtype, model)
    fast = copy.deepcopy(model).requires_grad_(False)
    found, arguments = _find(fast, example)
    memory_format = torch.channels_last
    packings = _rebuild(fast, found, own, target, memory_format)
    shapes = None if arguments is None else _shapes(fast, packings, arguments, target)
    if arguments is not None and shapes is None:
        # It takes a view of its maps as they would lie in memory otherwise, as x.view(n, -1) after a pool does.
        fast, memory_format = copy.deepcopy(model).requires_grad_(False), torch.contiguous_format
        packings = _rebuild(fast, found, own, target, memory_format)
    elif adapt and shapes:
        found.left.update(_unpack_slower(fast, packings, shapes))
    kept = [packing for packing in packings if packing.packed is not None]
    if target != own:
        if _has(fast, target):  # norms alone stay as they were
            fast.register_forward_pre_hook(_DtypeCheck(target))
        fast.register_forward_pre_hook(InputCast(target), with_kwargs=True)
        fast.register_forward_hook(OutputCast(own, target))
        for entrance in _ENTRANCES:
            if callable(getattr(type(fast), entrance, None)):
                setattr(fast, entrance, _Entrance(fast, entrance, own, target))
    activations = tuple(packing.activation for packing in kept if packing.activation)
    places = [place for packing in kept for place in packing.places]
    changed = {*found.batch_norms, *found.batch_norms.values(), *activations, *places}
    fast.acceleration = Acceleration(  # type: ignore[assignment]
        dtype=target,
        changed=[name for name, _ in model.named_modules(remove_duplicate=False) if name in changed],
        left=found.left,
        original=model,
        folded=tuple(found.batch_norms),
        activations=activations,
        packed=len(kept),
        memory_format=memory_format,
    )
    return fast


@dataclass
class _Packing:
    """A convolution that was packed.

    Attributes:
        places: names under which the network has it.
        plain: the convolution before; the following activation, if any, was `after` of name `activation`.
        packed: None once the plain one is back.
    """

    places: list[str]
    plain: nn.Conv2d
    packed: PackedConv2d | None
    activation: str = ""
    after: nn.Module | None = None

    def run_plain(self, x: Tensor) -> Tensor:
        x = self.plain(x)
        return x if self.after is None else self.after(x)


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
) -> list[_Packing]:
    """Change a network in place; the convolutions that were packed."""
    for name, convolution in found.batch_norms.items():
        fold_batch_norm(model.get_submodule(convolution), model.get_submodule(name))
        replace_module(model, name, nn.Identity().eval())
    if memory_format == torch.channels_last:
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
    _cast_parameters(model, own, target)
    # The packed convolution gives its maps channels-last.
    return _pack(model, found) if memory_format == torch.channels_last else []


def _shapes(
    model: nn.Module, packings: list[_Packing], arguments: tuple[Any, ...], dtype: torch.dtype
) -> dict[int, tuple[int, ...]] | None:
    """The input's shape of each packed convolution that ran, by index; None where the network refuses the arguments."""
    shapes: dict[int, tuple[int, ...]] = {}
    hooks = []
    for i, packing in enumerate(packings):

        def note(_: nn.Module, args: tuple[Any, ...], i: int = i) -> None:
            if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
                shapes[i] = tuple(args[0].shape)

        if packing.packed is not None:
            hooks.append(packing.packed.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            model(*InputCast(dtype).cast(arguments))
    except RuntimeError:
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _unpack_slower(model: nn.Module, packings: list[_Packing], shapes: dict[int, tuple[int, ...]]) -> dict[str, str]:
    """Put the plain convolution and its activation back where packing does not pay for one frame; why, by name."""
    calls, inputs = [], {}
    for i, shape in shapes.items():
        weight = packings[i].plain.weight
        x = torch.ones((1, *shape[1:]), dtype=weight.dtype).contiguous(memory_format=torch.channels_last)
        inputs[i] = x
        calls += [(packings[i].run_plain, x), (packings[i].packed, x)]
    left = {}
    with torch.no_grad():
        best_times(calls, lambda call: call[0](call[1]), passes=1)  # type: ignore[misc]  # packs, compiles
        seconds = best_times(calls, lambda call: call[0](call[1]), passes=_PASSES, within=_WITHIN)  # type: ignore[misc]
    for i, plain, packed in zip(shapes, seconds[::2], seconds[1::2]):
        if packed <= _PAYS * plain:
            continue
        packing = packings[i]
        packing.packed = None
        for place in packing.places:
            replace_module(model, place, packing.plain)
            left[place] = (
                f"packed it takes {packed * 1e6:.0f} µs for {list(inputs[i].shape)}, as it was {plain * 1e6:.0f} µs"
            )
        if packing.after is not None:
            replace_module(model, packing.activation, packing.after)
    return left


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


def _pack(model: nn.Module, found: folding.Findings) -> list[_Packing]:
    """Replace convolutions by packed ones with their activations."""
    after = {convolution: name for name, convolution in found.activations.items()}
    places = [name for name, module in model.named_modules(remove_duplicate=False) if packable(module)]
    made: dict[int, _Packing] = {}
    for name in places:
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        if id(conv) not in made:
            activation = model.get_submodule(after[name]) if name in after else None
            kind = "none" if activation is None else folding.ACTIVATIONS[type(activation)]
            made[id(conv)] = _Packing([], conv, PackedConv2d.of(conv, kind), after.get(name, ""), activation)
            if activation is not None:
                replace_module(model, after[name], nn.Identity().eval())
        packing = made[id(conv)]
        if name:
            assert packing.packed is not None
            packing.places.append(name)
            replace_module(model, name, packing.packed)
    return [packing for packing in made.values() if packing.places]


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


@dataclass(frozen=True)
class _DtypeCheck:
    """A forward pre-hook; a class, so that a network that carries it can be copied and pickled."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, args: Any) -> None:
        _check_dtype(module, self.dtype)


@dataclass(frozen=True)
class _Entrance:
    """A method of a model besides forward, with the casts that forward has."""

    model: nn.Module
    name: str
    own: torch.dtype
    target: torch.dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _check_dtype(self.model, self.target)
        args, kwargs = InputCast(self.target).cast((args, kwargs))
        output = getattr(type(self.model), self.name)(self.model, *args, **kwargs)
        return OutputCast(self.own, self.target).cast(output)


def compare(model: nn.Module, faster: nn.Module, data: Any) -> Agreement:
    """Run both networks on the same inputs.

    Args:
        data: one input, or an iterable of inputs; a tuple is one input of several arguments. Each network returns
            logits [N, C], or an output whose first floating tensor they are.

    Raises:
        ValueError: outputs without such a tensor, or of different shapes.
    """
    return compare_rows(model, faster, data, _logits, (Tensor,))


def _logits(output: Any) -> Tensor:
    """The first floating tensor of an output, as [N, C]."""
    found = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2]
    if not found:
        raise ValueError(f"a model's output must hold a floating tensor [N, C], got {type(output).__name__}")
    return found[0].flatten(1)
