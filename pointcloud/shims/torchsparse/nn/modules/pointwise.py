"""torch's norms and activations on the features of sparse tensors."""

from __future__ import annotations

import torch
from torch import nn

from pointcloud.shims.torchsparse.nn.utils import fapply
from pointcloud.shims.torchsparse.tensor import SparseTensor


class BatchNorm(nn.BatchNorm1d):
    def forward(self, input: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return fapply(input, super().forward)


class InstanceNorm(nn.InstanceNorm1d):
    def forward(self, input: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return fapply(input, super().forward)


class GroupNorm(nn.GroupNorm):
    """Groups are normalised over the rows of each sample."""

    def forward(self, input: SparseTensor) -> SparseTensor:  # type: ignore[override]
        feats, batch = input.feats, input.coords[:, 0]
        out = torch.zeros_like(feats)
        for sample in batch.unique():
            rows = (batch == sample).nonzero().flatten()
            part = super().forward(feats[rows].T[None])
            out = out.index_copy(0, rows, part[0].T)
        return input.with_feats(out)


class ReLU(nn.ReLU):
    def forward(self, input: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return fapply(input, super().forward)


class LeakyReLU(nn.LeakyReLU):
    def forward(self, input: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return fapply(input, super().forward)


class SiLU(nn.SiLU):
    def forward(self, input: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return fapply(input, super().forward)
