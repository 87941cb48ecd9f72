"""Norms, activations and linear layers on the features of sparse tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pointcloud.shims.MinkowskiEngine.tensor import SparseTensor, TensorField
from pointcloud.shims.torch_scatter import scatter_mean


class _Wrapped(nn.Module):
    """A layer of torch, made with its arguments, on the features."""

    MODULE: type[nn.Module]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.module = self.MODULE(*args, **kwargs)

    def forward(self, input: SparseTensor) -> SparseTensor:
        return input.at(self.module(input.F))


class MinkowskiReLU(_Wrapped):
    MODULE = nn.ReLU


class MinkowskiLeakyReLU(_Wrapped):
    MODULE = nn.LeakyReLU


class MinkowskiELU(_Wrapped):
    MODULE = nn.ELU


class MinkowskiGELU(_Wrapped):
    MODULE = nn.GELU


class MinkowskiSiLU(_Wrapped):
    MODULE = nn.SiLU


class MinkowskiSigmoid(_Wrapped):
    MODULE = nn.Sigmoid


class MinkowskiTanh(_Wrapped):
    MODULE = nn.Tanh


class MinkowskiPReLU(_Wrapped):
    MODULE = nn.PReLU


class MinkowskiRReLU(_Wrapped):
    MODULE = nn.RReLU


class MinkowskiSELU(_Wrapped):
    MODULE = nn.SELU


class MinkowskiCELU(_Wrapped):
    MODULE = nn.CELU


class MinkowskiReLU6(_Wrapped):
    MODULE = nn.ReLU6


class MinkowskiHardtanh(_Wrapped):
    MODULE = nn.Hardtanh


class MinkowskiHardshrink(_Wrapped):
    MODULE = nn.Hardshrink


class MinkowskiHardsigmoid(_Wrapped):
    MODULE = nn.Hardsigmoid


class MinkowskiHardswish(_Wrapped):
    MODULE = nn.Hardswish


class MinkowskiLogSigmoid(_Wrapped):
    MODULE = nn.LogSigmoid


class MinkowskiSoftplus(_Wrapped):
    MODULE = nn.Softplus


class MinkowskiSoftshrink(_Wrapped):
    MODULE = nn.Softshrink


class MinkowskiSoftsign(_Wrapped):
    MODULE = nn.Softsign


class MinkowskiTanhshrink(_Wrapped):
    MODULE = nn.Tanhshrink


class MinkowskiThreshold(_Wrapped):
    MODULE = nn.Threshold


class MinkowskiSoftmin(_Wrapped):
    MODULE = nn.Softmin


class MinkowskiSoftmax(_Wrapped):
    MODULE = nn.Softmax


class MinkowskiLogSoftmax(_Wrapped):
    MODULE = nn.LogSoftmax


class MinkowskiAlphaDropout(_Wrapped):
    MODULE = nn.AlphaDropout


class MinkowskiDropout(_Wrapped):
    MODULE = nn.Dropout


class MinkowskiBatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d`, as `bn`."""

    BATCH_NORM: type[nn.Module] = nn.BatchNorm1d

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.bn = self.BATCH_NORM(num_features, eps, momentum, affine, track_running_stats)

    def forward(self, input: SparseTensor) -> SparseTensor:
        return input.at(self.bn(input.F))


class MinkowskiSyncBatchNorm(MinkowskiBatchNorm):
    """`torch.nn.SyncBatchNorm`, as `bn`."""

    BATCH_NORM = nn.SyncBatchNorm

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """The module with every batch norm synchronised over the processes of a group."""
        return nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)


class MinkowskiInstanceNorm(nn.Module):
    """Each sample's features less their mean, over their deviation, times `weight` plus `bias` [1, C] each."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = 1e-6
        self.weight = nn.Parameter(torch.ones(1, num_features))
        self.bias = nn.Parameter(torch.zeros(1, num_features))

    def forward(self, input: SparseTensor) -> SparseTensor:
        sample = input.C[:, 0].long()
        centred = input.F - scatter_mean(input.F, sample, 0)[sample]
        deviation = (scatter_mean(centred.square(), sample, 0) + self.eps).sqrt()
        return input.at(centred / deviation[sample] * self.weight + self.bias)


class MinkowskiStableInstanceNorm(MinkowskiInstanceNorm):
    """As `MinkowskiInstanceNorm`, which takes the deviation from the centred values anyhow."""


class MinkowskiLinear(nn.Module):
    """`torch.nn.Linear`, as `linear`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias)

    def forward(self, input: SparseTensor) -> SparseTensor:
        return input.at(self.linear(input.F))


class MinkowskiSinusoidal(nn.Module):
    """`coef * sin(F @ kernel + bias)`."""

    def __init__(self, in_channel: int, out_channel: int) -> None:
        super().__init__()
        self.in_channel, self.out_channel = in_channel, out_channel
        self.kernel = nn.Parameter(torch.rand(in_channel, out_channel))
        self.bias = nn.Parameter(torch.rand(1, out_channel))
        self.coef = nn.Parameter(torch.rand(1, out_channel))

    def forward(self, input: SparseTensor) -> SparseTensor:
        return input.at((input.F @ self.kernel + self.bias).sin() * self.coef)


class MinkowskiToSparseTensor(nn.Module):
    """`sparse` of a field."""

    def forward(self, input: TensorField) -> SparseTensor:
        return input.sparse()
