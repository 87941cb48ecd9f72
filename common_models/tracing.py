"""What a network of images computes from what in one forward pass: operations, and the modules in which they ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common_models.modes import evaluating

# Frame sides that are tried until the network accepts one: a small one first, it costs least.
SIDES = (64, 224, 32, 28, 96, 112, 128, 160, 176, 192, 256, 299, 384, 512)


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: the operator's, without overload and without the underscore of in-place ones, as in `add`.
        inputs: indices of the operations whose results it read, in the order of its arguments.
        in_shapes: of these results as it read them (a view of a result may have another shape).
        shape: of its result.
        modules: names of the modules that were running, from the root ("") to the innermost.
    """

    name: str
    inputs: tuple[int, ...]
    in_shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    modules: tuple[str, ...]


@dataclass
class Trace:
    """Operations in the order in which they ran; the first one stands for the frame.

    Attributes:
        output: what the network returned.
        calls: how often each module ran.
        unary: modules that were only ever called with a single tensor.
    """

    operations: list[Operation] = field(default_factory=list)
    output: Any = None
    calls: dict[str, int] = field(default_factory=dict)
    unary: dict[str, bool] = field(default_factory=dict)


def trace(model: nn.Module) -> Trace:
    """Run the model once, in evaluation mode, on a black frame; it is left as it was.

    Raises:
        ValueError: the network accepts no frame [1, C, side, side] of the sides that are tried.
    """
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = 3 if convolution is None else convolution.in_channels
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    first_error: Exception | None = None
    with evaluating(model):
        for side in SIDES:
            frame = torch.zeros(1, channels, side, side, dtype=weight.dtype, device=weight.device)
            try:
                return _run(model, frame)
            except Exception as error:  # whatever the user's network raises on a size it does not take
                first_error = first_error or error
    raise ValueError(
        f"model must accept frames [N, {channels}, H, W]; [1, {channels}, {SIDES[0]}, {SIDES[0]}] and larger ones "
        f"raised {type(first_error).__name__}: {first_error}"
    )


def _run(model: nn.Module, frame: Tensor) -> Trace:
    recorder = _Recorder(frame)
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(recorder.entering(name), with_kwargs=True, prepend=True))
        hooks.append(module.register_forward_hook(recorder.leave, always_call=True))
    try:
        with torch.no_grad(), recorder:
            recorder.trace.output = model(frame)
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.trace


class _Recorder(TorchDispatchMode):
    """Takes down every operation. A value is known by its storage: views and in-place results share it."""

    def __init__(self, frame: Tensor) -> None:
        super().__init__()
        self.trace = Trace([Operation("frame", (), (), tuple(frame.shape), ("",))])
        self.running: list[str] = []
        self.writer = {frame.untyped_storage()._cdata: 0}
        self.alive: list[Tensor] = [frame]  # a freed storage's address would be given to another

    def entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            self.trace.calls[name] = self.trace.calls.get(name, 0) + 1
            self.trace.unary[name] = self.trace.unary.get(name, True) and single
            self.running.append(name)

        return enter

    def leave(self, *_: object) -> None:
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        inputs = {
            self.writer[key]: tuple(x.shape)
            for x in reversed(read)
            if (key := x.untyped_storage()._cdata) in self.writer
        }
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not inputs or not written:
            return out
        name = func.overloadpacket.__name__
        changes = name.endswith("_") or name.startswith("copy_")
        storages = {x.untyped_storage()._cdata for x in written}
        if not changes and storages <= self.writer.keys():
            return out  # a view
        index = len(self.trace.operations)
        sources, shapes = tuple(reversed(inputs)), tuple(reversed(inputs.values()))
        self.trace.operations.append(
            Operation(name.rstrip("_"), sources, shapes, tuple(written[0].shape), tuple(self.running))
        )
        self.alive += written
        for storage in storages:
            self.writer[storage] = index
        return out
