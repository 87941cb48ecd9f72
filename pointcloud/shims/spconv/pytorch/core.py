"""spconv.pytorch.core: the sparse tensor, and what an indice_key stands for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pointcloud.convolution import sizes
from pointcloud.coordinates import IndiceData
from pointcloud.shims.spconv.constants import SPCONV_FX_TRACE_MODE
from pointcloud.shims.spconv.pytorch.constants import PYTORCH_VERSION
from pointcloud.shims.spconv.refusal import refuse
from pointcloud.shims.spconv.tools import CUDAKernelTimer
from pointcloud.tensor import ConvAlgo, SparseConvTensor

# One class serves both of spconv's algorithms.
ImplicitGemmIndiceData = IndiceData

refuse(globals(), "ThrustSortAllocator", "buffers are torch's; a SparseConvTensor takes permanent_thrust_allocator")


def expand_nd(ndim: int, val: int | Sequence[int]) -> list[int]:
    """`val` as one number per axis. Raises ValueError for another count."""
    return sizes(val, ndim, "val", -(2**31))


def scatter_nd(indices: Tensor, updates: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of `shape` with `updates [..., *shape[D:]]` at `indices [..., D]`; the last of repeated indices may win."""
    ndim = indices.shape[-1]
    out = updates.new_zeros(list(shape))
    out[indices.reshape(-1, ndim).long().unbind(1)] = updates.reshape(-1, *shape[ndim:])
    return out


__all__ = [
    "PYTORCH_VERSION",
    "SPCONV_FX_TRACE_MODE",
    "CUDAKernelTimer",
    "ConvAlgo",
    "ImplicitGemmIndiceData",
    "IndiceData",
    "SparseConvTensor",
    "expand_nd",
    "scatter_nd",
]
