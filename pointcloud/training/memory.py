"""What a training step keeps in memory for its backward pass: counted, and made less by computing stages again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pointcloud.convolution import SparseConvolution
from pointcloud.tensor import SparseConvTensor

_counting: ContextVar[Callable[[Tensor], object] | None] = ContextVar("_counting", default=None)


class SavedBytes:
    """Bytes of activations kept for the backward pass of what is computed inside of the `with` block.

    Each storage counts once. Parameters and buffers of `model` do not count, nor integer tables of maps, which the
    coordinates keep in any case.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self._sizes: dict[int, int] = {}
        self._held: list[Tensor] = []  # so that no address is given out twice

    @property
    def total(self) -> int:
        """Bytes so far."""
        return sum(self._sizes.values())

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is kept."""
        storage = tensor.untyped_storage()
        counts = tensor.is_floating_point() or tensor.dtype in (torch.bool, torch.uint8)
        if counts and storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
            self._held.append(tensor.detach())
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor)
        self._hooks.__enter__()
        self._token = _counting.set(self.add)
        return self

    def __exit__(self, *error: object) -> None:
        _counting.reset(self._token)
        self._hooks.__exit__(*error)
        self._held.clear()


def stages_of(model: nn.Module) -> list[str]:
    """Names of the parts that are worth computing again: entries of module lists with two convolutions or more."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            names += [f"{name}.{key}" for key, child in module.named_children() if _n_convolutions(child) > 1]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _n_convolutions(module: nn.Module) -> int:
    return sum(isinstance(child, SparseConvolution) for child in module.modules())


@contextmanager
def recomputed(model: nn.Module, stages: Sequence[str] | None = None) -> Iterator[list[str]]:
    """Within, the stages of a network keep their inputs only and are computed again in the backward pass.

    Losses, gradients and running statistics are those without it. Yields the names of the stages.

    Args:
        stages: names of modules; by default those of `stages_of`.

    Raises:
        ValueError: no such module, or a network without such stages.
    """
    names = stages_of(model) if stages is None else list(stages)
    known = dict(model.named_modules())
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"stages must name modules of the network, got {got}")
    modules = [known[name] for name in names]
    for module in modules:
        module.forward = _again(module, module.forward)
    try:
        yield names
    finally:
        for module in modules:
            del module.forward


def _again(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _unmoved_statistics(module)

    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        count = _counting.get()
        for value in [*inputs, *options.values()]:
            tensor = value.features if isinstance(value, SparseConvTensor) else value
            if count is not None and isinstance(tensor, Tensor):
                count(tensor)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)

    return run


@contextmanager
def _unmoved_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms have learned from these rows already."""
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before):
                buffer.copy_(value)
