"""Features at any points, from the cells around them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from common_kernels.gather_rows import gather_rows
from pointcloud.shims.MinkowskiEngine.tensor import SparseTensor


class MinkowskiInterpolation(nn.Module):
    """Linear interpolation along each axis: cells that are missing count as zeros.

    Maps and weights are not handed out (`return_kernel_map`, `return_weights` are refused).
    """

    def __init__(self, return_kernel_map: bool = False, return_weights: bool = False) -> None:
        super().__init__()
        for name, value in (("return_kernel_map", return_kernel_map), ("return_weights", return_weights)):
            if value:
                raise NotImplementedError(f"{name} must be False with Trisparse's stand-in for MinkowskiEngine")

    def forward(self, input: SparseTensor, tfield: Tensor) -> Tensor:
        """Features [M, C] at points [M, 1 + D], batch index first, in the units of the coordinates."""
        if tfield.ndim != 2 or tfield.shape[1] != input.D + 1 or not tfield.is_floating_point():
            raise ValueError(f"tfield must be floating [M, {input.D + 1}], got {tfield.dtype} {list(tfield.shape)}")
        stride = torch.tensor(input.tensor_stride, device=tfield.device, dtype=tfield.dtype)
        low = torch.floor(tfield[:, 1:] / stride)
        share = (tfield[:, 1:] / stride - low).to(input.dtype)
        cells = input.coordinate_manager.cells(input.coordinate_map_key)
        out = input.F.new_zeros(len(tfield), input.F.shape[1])
        for corner in itertools.product((0, 1), repeat=input.D):
            at = torch.tensor(corner, device=tfield.device, dtype=tfield.dtype)
            where = torch.cat([tfield[:, :1], (low + at) * stride], 1).long()
            weight = torch.where(at.bool(), share, 1 - share).prod(1, keepdim=True)
            out = out + gather_rows(input.F, cells.rows(where)) * weight
        return out
