"""spconv.pytorch.ops: index pairs, and the product over them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from common_kernels import KernelMap, gather_gemm
from pointcloud.coordinates import Coordinates, Geometry, IndiceData
from pointcloud.shims.spconv.constants import (
    ALL_WEIGHT_IS_KRSC,
    FILTER_HWIO,
    SPCONV_ALLOW_TF32,
    SPCONV_CPP_GEMM,
    SPCONV_CPP_INDICE_PAIRS,
    SPCONV_CPP_INDICE_PAIRS_IGEMM,
    SPCONV_DIRECT_TABLE_HASH_SIZE_SCALE,
    SPCONV_DO_SORT,
    SPCONV_USE_DIRECT_TABLE,
    AllocKeys,
)
from pointcloud.shims.spconv.core import AlgoHint, ConvAlgo
from pointcloud.shims.spconv.cppconstants import CPU_ONLY_BUILD
from pointcloud.shims.spconv.refusal import refuse
from pointcloud.shims.spconv.tools import CUDAKernelTimer

DEBUG = False
DEBUG_INT64_HASH_K = False
INT32_MAX = 2**31 - 1

refuse(
    globals(),
    "CONV CONV_CPP ConvGemmOps ExternalAllocator GEMM GEMM_CPP InferenceOps SpconvOps ThrustSortAllocator "
    "TorchAllocator TorchSpconvMatmul get_arch get_current_stream torch_tensor_to_tv",
    "it is compiled C++ of spconv, or bridges to it",
)
refuse(
    globals(),
    "fused_indice_conv implicit_gemm get_indice_pairs_implicit_gemm indice_avgpool_implicit_gemm indice_maxpool "
    "indice_maxpool_implicit_gemm global_pool_rearrange maximum_value_int_",
    "layers do what it is for; indice_conv is differentiable and takes the pairs of get_indice_pairs",
)
refuse(
    globals(),
    "indice_conv_backward implicit_gemm_backward indice_avgpool_implicit_gemm_backward indice_maxpool_backward "
    "indice_maxpool_implicit_gemm_backward",
    "gradients come from autograd",
)


def get_conv_output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Extent of a convolution's output grid; 1 where kernel_size is -1."""
    return [
        1 if k == -1 else (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(input_size, kernel_size, stride, padding, dilation, strict=True)
    ]


def get_deconv_output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
) -> list[int]:
    """Extent of a transposed convolution's output grid. Raises ValueError for a kernel_size below 1."""
    if min(kernel_size) < 1:
        raise ValueError(f"kernel_size must be at least 1, got {list(kernel_size)}")
    return [
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + extra
        for n, k, s, p, d, extra in zip(input_size, kernel_size, stride, padding, dilation, output_padding, strict=True)
    ]


def get_indice_pairs(
    indices: Tensor,
    batch_size: int,
    spatial_shape: Sequence[int],
    algo: ConvAlgo,
    ksize: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_padding: Sequence[int],
    subm: bool = False,
    transpose: bool = False,
    num_out_act_bound: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output coordinates int32 [M, 1 + D], pairs int32 [2, K, N] and pairs per tap int32 [K], as `IndiceData` has them.

    Raises:
        ValueError: an algo other than `ConvAlgo.Native`, which has other results; a bound on the outputs.
    """
    if getattr(algo, "name", None) != "Native":
        raise ValueError(f"algo must be ConvAlgo.Native, got {algo!r}")
    if num_out_act_bound > 0:
        raise ValueError(f"num_out_act_bound is not supported: it must stay at -1, got {num_out_act_bound}")
    kind = "submanifold" if subm else "transposed" if transpose else "strided"
    none = (0,) * len(ksize)
    geometry = Geometry(
        kind,
        tuple(ksize),
        (1,) * len(ksize) if subm else tuple(stride),
        none if subm else tuple(padding),
        tuple(dilation),
        tuple(out_padding) if transpose else none,
    )
    source = Coordinates(indices, spatial_shape, batch_size)
    data = IndiceData(source, geometry, source.link(geometry))
    return data.out_indices, data.indice_pairs, data.indice_pair_num


def indice_conv(
    features: Tensor,
    filters: Tensor,
    indice_pairs: Tensor,
    indice_pair_num: Tensor,
    num_activate_out: int,
    inverse: bool = False,
    subm: bool = False,
    algo: ConvAlgo = ConvAlgo.Native,
    timer: CUDAKernelTimer | None = None,
    bias: Tensor | None = None,
    act_alpha: float = 0.0,
    act_beta: float = 0.0,
    act_type: Any = None,
) -> Tensor:
    """Sum over taps of the pairs' rows times `filters`. Differentiable.

    Args:
        features: [N, Cin].
        filters: [Cout, *kernel, Cin].
        indice_pairs: int32 [2, K, P]: input and output rows of each tap; a pair of -1 is none.
        indice_pair_num, subm, algo, timer: accepted; the pairs say everything.
        num_activate_out: M, the number of output rows.
        inverse: exchange input and output rows.
        bias: [Cout].
        act_alpha, act_beta, act_type: only at their defaults.

    Returns:
        [M, Cout].
    """
    if act_alpha or act_beta or getattr(act_type, "name", "None_") != "None_":
        raise ValueError(f"act_type, act_alpha and act_beta must stay at their defaults, got {act_type!r}")
    source, target = indice_pairs.flip(0) if inverse else indice_pairs
    found = source >= 0
    if bool((source >= len(features)).any()) or bool((target[found] >= num_activate_out).any()):
        raise ValueError(
            f"indice_pairs must lie below the {len(features)} rows of features and num_activate_out {num_activate_out}"
        )
    table = torch.full((len(source), num_activate_out), -1, dtype=torch.int32, device=source.device)
    table[found.nonzero()[:, 0], target[found].long()] = source[found].int()
    nowhere = torch.zeros(num_activate_out, 2, dtype=torch.int32, device=source.device)
    map = KernelMap(table, len(features), nowhere, (1,))
    return gather_gemm(features, map, filters.flatten(1, -2).permute(1, 2, 0), bias)


__all__ = [
    "ALL_WEIGHT_IS_KRSC",
    "CPU_ONLY_BUILD",
    "DEBUG",
    "DEBUG_INT64_HASH_K",
    "FILTER_HWIO",
    "INT32_MAX",
    "SPCONV_ALLOW_TF32",
    "SPCONV_CPP_GEMM",
    "SPCONV_CPP_INDICE_PAIRS",
    "SPCONV_CPP_INDICE_PAIRS_IGEMM",
    "SPCONV_DIRECT_TABLE_HASH_SIZE_SCALE",
    "SPCONV_DO_SORT",
    "SPCONV_USE_DIRECT_TABLE",
    "AlgoHint",
    "AllocKeys",
    "CUDAKernelTimer",
    "ConvAlgo",
    "get_conv_output_size",
    "get_deconv_output_size",
    "get_indice_pairs",
    "indice_conv",
    "nullcontext",
]
