"""A row for each sample, handed to all rows of that sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointcloud.shims.MinkowskiEngine.tensor import SparseTensor


class _Broadcast(nn.Module):
    def forward(self, input: SparseTensor, input_glob: SparseTensor) -> SparseTensor:
        """Raises ValueError where a sample of the input has no row, or two, in `input_glob`."""
        sample, given = input.C[:, 0].long(), input_glob.C[:, 0].long()
        n = int(max(sample.max(), given.max())) + 1 if len(sample) and len(given) else len(sample)
        row = given.new_full((n,), -1)
        row[given] = torch.arange(len(given), device=given.device)
        chosen = row[sample] if len(sample) else sample
        if len(torch.unique(given)) != len(given) or bool((chosen < 0).any()):
            raise ValueError(f"input_glob must hold one row for each sample of the input, got samples {given.tolist()}")
        return input.at(self.combine(input.F, input_glob.F[chosen]))

    def combine(self, features: Tensor, others: Tensor) -> Tensor:
        raise NotImplementedError


class MinkowskiBroadcastAddition(_Broadcast):
    """The sum with the sample's row."""

    def combine(self, features: Tensor, others: Tensor) -> Tensor:
        return features + others


class MinkowskiBroadcastMultiplication(_Broadcast):
    """The product with the sample's row."""

    def combine(self, features: Tensor, others: Tensor) -> Tensor:
        return features * others


class MinkowskiBroadcast(_Broadcast):
    """The sample's row in place of the features."""

    def combine(self, features: Tensor, others: Tensor) -> Tensor:
        return others


class MinkowskiBroadcastConcatenation(_Broadcast):
    """The sample's row beside the features."""

    def combine(self, features: Tensor, others: Tensor) -> Tensor:
        return torch.cat([features, others], 1)
