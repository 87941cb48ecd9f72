"""In which state a network is: training or evaluating, watched by hooks, being traced or exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def check_evaluating(model: nn.Module) -> None:
    """Raise ValueError where any module of the network is in training mode."""
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        others = f" and {len(training) - 1} more modules are" if len(training) > 1 else " is"
        raise ValueError(
            f"model must be in evaluation mode, but {training[0]}{others} in training mode: call model.eval() first"
        )


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block. The flags are set one by one: networks override `train`."""
    flags = {module: module.training for model in models for module in model.modules()}
    try:
        for module in flags:
            module.training = False
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def exporting() -> bool:
    """Whether operations are being recorded for other inputs: torch.export, torch.jit.trace or an ONNX export."""
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return is_exporting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def transforming() -> bool:
    """Whether torch looks through operations rather than computing them: graphs of proxies, fake tensors, vmap, jvp."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    keys = torch._C._TorchDispatchModeKey
    modes = (torch._C._get_dispatch_mode(key) for key in (keys.PROXY, keys.FAKE))
    return any(mode is not None for mode in modes) or torch._C._functorch.peek_interpreter_stack() is not None


def is_hooked(module: nn.Module) -> bool:
    """Whether something watches the module's input, output or gradients, or replaces its forward on the object."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def owns_weight(module: nn.Module) -> bool:
    """Whether the module's weight is a parameter of its own, free to be replaced: no hooks, no parametrisation."""
    return (
        not is_hooked(module)
        and not nn.utils.parametrize.is_parametrized(module)
        and isinstance(module._parameters.get("weight"), nn.Parameter)
    )
