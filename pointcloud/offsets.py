"""Convolution over any offsets and to any output coordinates: crosses, target coordinates, the border rule by floor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common_kernels import KernelMap, gather_gemm
from common_kernels.kernel_map import per_axis
from common_kernels.kernel_map.offsets import check_offsets, floor_cells, kernel_offsets, offset_map, reached_cells
from pointcloud.coordinates import Coordinates
from pointcloud.modules import SparseModule
from pointcloud.tensor import SparseConvTensor

__all__ = ["OUTPUTS", "SparseOffsetConv", "kernel_offsets"]

OUTPUTS = ("floor", "reached")


class SparseOffsetConv(SparseModule):
    """Convolution with a weight for each of any offsets: `y[o] = sum over taps k of x[o * stride + offset_k] @ W[k]`.

    Weight `[out_channels, K, in_channels]`, bias `[out_channels]`. The output cells are those of `targets` where the
    call names them, else:

    * "floor": `floor(cell / stride)` of the inputs, in a grid of `ceil(extent / stride)` cells. With stride 1 these are
      the inputs' own cells, in their order. Unlike the rule of dense convolutions, which `SparseConv3d` follows, no
      input at the border is left out (MinkowskiEngine's rule, and torchsparse's where kernel and stride are equal).
    * "reached": all cells of that grid from which some tap finds an input: a generative convolution, which grows.

    Maps are kept with the coordinates, so that layers with equal offsets share them.

    Args:
        offsets: [K, D] integers, D from 1 to 4, as `kernel_offsets` makes them or any of your own.
        stride: an int, or one per axis.
        outputs: "floor" or "reached".

    Example:
        >>> import torch, pointcloud
        >>> cells = torch.tensor([[0, 2, 3, 1], [0, 2, 4, 1]], dtype=torch.int32)
        >>> x = pointcloud.SparseConvTensor(torch.ones(2, 4), cells, spatial_shape=[8, 8, 8], batch_size=1)
        >>> cross = pointcloud.kernel_offsets(3, region="cross")
        >>> pointcloud.SparseOffsetConv(4, 16, cross)(x).features.shape
        torch.Size([2, 16])
    """

    offsets: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        offsets: Tensor,
        stride: int | Sequence[int] = 1,
        bias: bool = True,
        *,
        outputs: str = "floor",
        name: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(name=name)
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}")
        if outputs not in OUTPUTS:
            raise ValueError(f"outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}")
        self.ndim = offsets.shape[-1] if isinstance(offsets, Tensor) and offsets.ndim == 2 else 3
        self.in_channels, self.out_channels, self.outputs = in_channels, out_channels, outputs
        self.stride = per_axis(stride, self.ndim, "stride", 1)
        self.register_buffer("offsets", check_offsets(offsets, self.ndim).to(torch.int32), persistent=False)
        self._taps = tuple(map(tuple, self.offsets.tolist()))
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_channels, len(offsets), in_channels, **options))  # type: ignore[arg-type]
        self.bias = nn.Parameter(torch.empty(out_channels, **options)) if bias else None  # type: ignore[arg-type]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as torch's convolutions do, by the number of inputs of an output."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_channels * len(self.offsets))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: SparseConvTensor, targets: SparseConvTensor | Coordinates | None = None) -> SparseConvTensor:
        """Features at `targets`, where given, else at the cells that `outputs` says.

        Raises:
            TypeError: x that is no SparseConvTensor.
            ValueError: other channels or axes than the layer's; targets of another batch size or device.
        """
        if not isinstance(x, SparseConvTensor):
            raise TypeError(f"x must be a SparseConvTensor, got {type(x).__name__}")
        if x.features.shape[1] != self.in_channels or len(x.spatial_shape) != self.ndim:
            raise ValueError(f"x must have {self.in_channels} channels and {self.ndim} axes, got {x}")
        where = targets.coordinates if isinstance(targets, SparseConvTensor) else targets
        if where is not None and not isinstance(where, Coordinates):
            raise TypeError(f"targets must be a SparseConvTensor or Coordinates, got {type(where).__name__}")
        if where is not None and (len(where.spatial_shape), where.batch_size) != (self.ndim, x.batch_size):
            raise ValueError(f"targets must have {self.ndim} axes and batch_size {x.batch_size}, got {where}")
        found, where = self._find(x.coordinates, where)
        features, weight = x.features, self.weight.permute(1, 2, 0)
        bias: Tensor | None = self.bias
        device = features.device.type
        if features.dtype != torch.float64 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            features, weight, bias = features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return SparseConvTensor.over(where, gather_gemm(features, found, weight, bias), x.indice_dict)

    def _find(self, source: Coordinates, where: Coordinates | None) -> tuple[KernelMap, Coordinates]:
        stride = tuple(self.stride)
        if where is None:
            key = ("cells", self.outputs, self._taps if self.outputs == "reached" else (), stride)
            where = source if self._keeps_cells else source.kept(key, lambda: self._cells(source))
        target = where

        def search() -> KernelMap:
            rows = source.indices if target is source else target.indices
            return offset_map(
                source.indices, source.spatial_shape, rows, target.spatial_shape, self.offsets, self.stride,
                batch_size=source.batch_size,
            )  # fmt: skip

        return source.kept(("offsets", self._taps, stride), search, over=None if target is source else target), target

    @property
    def _keeps_cells(self) -> bool:
        return self.outputs == "floor" and max(self.stride) == 1

    def _cells(self, source: Coordinates) -> Coordinates:
        source.check()
        shape = [-(-extent // step) for extent, step in zip(source.spatial_shape, self.stride, strict=True)]
        if self.outputs == "floor":
            cells = floor_cells(source.indices, shape, self.stride)
        else:
            cells = reached_cells(source.indices, shape, self.offsets, self.stride, batch_size=source.batch_size)
        return Coordinates(cells, shape, source.batch_size)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, taps={len(self.offsets)}, stride={self.stride}, "
            f"outputs={self.outputs!r}, bias={self.bias is not None}"
        )
