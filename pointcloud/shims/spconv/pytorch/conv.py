"""spconv.pytorch.conv: the sparse convolutions."""

from contextlib import nullcontext

from pointcloud.conv import (
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseConv4d,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseConvTranspose3d,
    SparseConvTranspose4d,
    SparseInverseConv1d,
    SparseInverseConv2d,
    SparseInverseConv3d,
    SparseInverseConv4d,
    SubMConv1d,
    SubMConv2d,
    SubMConv3d,
    SubMConv4d,
)
from pointcloud.convolution import SparseConvolution
from pointcloud.modules import SparseModule
from pointcloud.shims.spconv.constants import (
    ALL_WEIGHT_IS_KRSC,
    FILTER_HWIO,
    SAVED_WEIGHT_LAYOUT,
    SPCONV_DEBUG_WEIGHT,
)
from pointcloud.shims.spconv.cppconstants import CPU_ONLY_BUILD
from pointcloud.shims.spconv.debug_utils import spconv_save_debug_data
from pointcloud.shims.spconv.pytorch.core import (
    ConvAlgo,
    ImplicitGemmIndiceData,
    IndiceData,
    SparseConvTensor,
    expand_nd,
)

SPCONV_VERSION_NUMBERS = [2, 3, 8]
SparseConvolutionBase = SparseConvolution
DEFAULT_SPARSE_CONV_TYPES = {
    SubMConv1d, SubMConv2d, SubMConv3d, SubMConv4d, SparseConv1d, SparseConv2d, SparseConv3d, SparseConv4d,
    SparseInverseConv1d, SparseInverseConv2d, SparseInverseConv3d, SparseInverseConv4d, SparseConvTranspose1d,
    SparseConvTranspose2d, SparseConvTranspose3d, SparseConvTranspose4d,
}  # fmt: skip

__all__ = [
    "ALL_WEIGHT_IS_KRSC",
    "CPU_ONLY_BUILD",
    "DEFAULT_SPARSE_CONV_TYPES",
    "FILTER_HWIO",
    "SAVED_WEIGHT_LAYOUT",
    "SPCONV_DEBUG_WEIGHT",
    "SPCONV_VERSION_NUMBERS",
    "ConvAlgo",
    "ImplicitGemmIndiceData",
    "IndiceData",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConv4d",
    "SparseConvTensor",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseConvTranspose3d",
    "SparseConvTranspose4d",
    "SparseConvolution",
    "SparseConvolutionBase",
    "SparseInverseConv1d",
    "SparseInverseConv2d",
    "SparseInverseConv3d",
    "SparseInverseConv4d",
    "SparseModule",
    "SubMConv1d",
    "SubMConv2d",
    "SubMConv3d",
    "SubMConv4d",
    "expand_nd",
    "nullcontext",
    "spconv_save_debug_data",
]
