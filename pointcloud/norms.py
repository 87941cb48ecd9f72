"""Norms over the cells of each sample by itself: group norm and instance norm of sparse tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common_kernels.gather_rows import gather_rows
from pointcloud.functional import sum_samples
from pointcloud.modules import SparseModule
from pointcloud.tensor import SparseConvTensor


class SparseGroupNorm(SparseModule):
    """Group norm: each sample's cells and each group's channels together have mean 0 and variance 1.

    `nn.GroupNorm` on features [N, C] would norm every cell by itself. Statistics are computed in at least fp32, in a
    fixed order of summation. A sample without cells stays without.

    Args:
        num_groups: number of groups, which divides num_channels.
        eps: added to the variance.
        affine: whether to learn a factor and a summand for each channel.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise ValueError(f"num_groups must divide num_channels, got {num_groups} and {num_channels}")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        weight = bias = None
        if affine:
            weight = nn.Parameter(torch.ones(num_channels, device=device, dtype=dtype))
            bias = nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype))
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """The normed features at the same cells. Raises ValueError for another number of channels."""
        if not isinstance(x, SparseConvTensor):
            raise TypeError(f"x must be a SparseConvTensor, got {type(x).__name__}")
        if x.features.shape[1] != self.num_channels:
            raise ValueError(f"x must have {self.num_channels} channels, got {x}")
        wide = x.features.to(torch.promote_types(x.features.dtype, torch.float32))
        sample = x.indices[:, 0]
        centred = wide - gather_rows(self._mean(x, wide), sample)
        scale = torch.rsqrt(self._mean(x, centred * centred) + self.eps)
        out = centred * gather_rows(scale, sample)
        if self.weight is not None and self.bias is not None:
            out = out * self.weight + self.bias
        return x.replace_feature(out.to(x.features.dtype))

    def _mean(self, x: SparseConvTensor, values: Tensor) -> Tensor:
        """[batch_size, C]: mean over the cells of a sample and the channels of a group, for each of its channels."""
        size = self.num_channels // self.num_groups
        counts = torch.bincount(x.indices[:, 0], minlength=x.batch_size).clamp(min=1).to(values.dtype)
        sums = sum_samples(x, values).unflatten(1, (self.num_groups, size)).sum(2)
        return (sums / (counts[:, None] * size)).repeat_interleave(size, 1)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class SparseInstanceNorm(SparseGroupNorm):
    """Instance norm: each sample's cells have mean 0 and variance 1, channel by channel.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        affine: whether to learn a factor and a summand for each channel.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, num_features, eps, affine, device, dtype)
