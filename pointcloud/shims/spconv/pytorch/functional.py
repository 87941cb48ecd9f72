"""spconv.pytorch.functional: products over index pairs, and sums of sparse tensors."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from pointcloud.functional import sparse_add
from pointcloud.shims.spconv.debug_utils import spconv_save_debug_data
from pointcloud.shims.spconv.pytorch.constants import PYTORCH_VERSION
from pointcloud.shims.spconv.pytorch.ops import ConvAlgo
from pointcloud.shims.spconv.pytorch.ops import indice_conv as product_of_pairs
from pointcloud.shims.spconv.refusal import refuse
from pointcloud.shims.spconv.tools import CUDAKernelTimer
from pointcloud.tensor import SparseConvTensor

Function = TypeVar("Function")
sparse_add_hash_based = sparse_add

refuse(
    globals(),
    "HashTable SparseAvgPoolImplicitGemmFunction SparseConvFunction SparseImplicitGemmFunction "
    "SparseInverseConvFunction SparseMaxPoolFunction SparseMaxPoolImplicitGemmFunction SubMConvFunction implicit_gemm "
    "indice_avgpool_implicit_gemm indice_maxpool indice_maxpool_implicit_gemm",
    "layers do what it is for, and indice_conv, indice_subm_conv and indice_inverse_conv take pairs",
)


def identity_decorator(func: Function) -> Function:
    """The function itself."""
    return func


def indice_conv(
    features: Tensor,
    filters: Tensor,
    indice_pairs: Tensor,
    indice_pair_num: Tensor,
    num_activate_out: int,
    algo: ConvAlgo = ConvAlgo.Native,
    timer: CUDAKernelTimer | None = None,
    bias: Tensor | None = None,
    act_alpha: float = 0.0,
    act_beta: float = 0.0,
    act_type: Any = None,
) -> Tensor:
    """`ops.indice_conv`, with gradients."""
    arguments = features, filters, indice_pairs, indice_pair_num, num_activate_out
    return product_of_pairs(*arguments, False, False, algo, timer, bias, act_alpha, act_beta, act_type)


def indice_inverse_conv(
    features: Tensor,
    filters: Tensor,
    indice_pairs: Tensor,
    indice_pair_num: Tensor,
    num_activate_out: int,
    algo: ConvAlgo = ConvAlgo.Native,
    timer: CUDAKernelTimer | None = None,
    bias: Tensor | None = None,
    act_alpha: float = 0.0,
    act_beta: float = 0.0,
    act_type: Any = None,
) -> Tensor:
    """`ops.indice_conv` with input and output rows exchanged, with gradients."""
    arguments = features, filters, indice_pairs, indice_pair_num, num_activate_out
    return product_of_pairs(*arguments, True, False, algo, timer, bias, act_alpha, act_beta, act_type)


indice_subm_conv = indice_conv

__all__ = [
    "PYTORCH_VERSION",
    "CUDAKernelTimer",
    "SparseConvTensor",
    "identity_decorator",
    "indice_conv",
    "indice_inverse_conv",
    "indice_subm_conv",
    "sparse_add",
    "sparse_add_hash_based",
    "spconv_save_debug_data",
]
