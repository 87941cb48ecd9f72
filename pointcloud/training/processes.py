"""Several processes that train one network: sums over processes, and batch norm over the whole step's rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pointcloud.tensor import SparseConvTensor


@contextmanager
def joined() -> Iterator[None]:
    """The process group of torchrun (gloo), left at the end; nothing where torchrun did not start this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, without a gradient."""
    if rank_and_world()[1] == 1:
        return tensor
    summed = tensor.detach().clone()
    dist.all_reduce(summed)
    return summed


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes: that of a loss whose parts the processes computed."""
    if rank_and_world()[1] == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    dist.all_reduce(flat)
    for p, grad in zip(trained, flat.split([p.numel() for p in trained])):
        p.grad = grad.view_as(p).clone()


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is the sum of theirs, since every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return total(grad)


class SharedBatchNorm(nn.Module):
    """A batch norm whose statistics are over the rows of all processes, on any device; a process may have no rows.

    Takes features [N, C] or a sparse tensor. Parameters and buffers are those of the batch norm that it stands for.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.train(norm.training)

    def forward(self, input: Any) -> Any:
        if isinstance(input, SparseConvTensor):
            return input.replace_feature(self.forward(input.features))
        if not self.training and self.running_mean is not None and self.running_var is not None:
            return self._scaled(input, self.running_mean, self.running_var)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        rows = total(x.new_tensor([len(x)])).clamp(min=1)
        mean = _Sum.apply(x.sum(0)) / rows
        variance = _Sum.apply((x - mean).square().sum(0)) / rows
        if self.training:
            self._track(mean.detach(), variance.detach() * rows / (rows - 1).clamp(min=1))
        return self._scaled(x, mean, variance).to(input.dtype)

    def _scaled(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        out = (x - mean) * (variance + self.eps).rsqrt()
        return out if self.weight is None else out * self.weight + self.bias

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)


@contextmanager
def shared_norms(model: nn.Module) -> Iterator[None]:
    """Within, every BatchNorm1d of a network measures the rows of all processes; with one process nothing changes."""
    if rank_and_world()[1] == 1:
        yield
        return
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                replaced.append((parent, name, child))
                setattr(parent, name, SharedBatchNorm(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)
