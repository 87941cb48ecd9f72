"""Operators on rows, maps and segments, shared by the point-cloud, video and language packages.

One idea: for each output row, gather some input rows, multiply, sum. This package knows no domain.
"""

from common_kernels.channel_shift import channel_shift
from common_kernels.compact import compact
from common_kernels.coordinate_table import CoordinateTable
from common_kernels.gather_gemm import gather_gemm
from common_kernels.gather_rows import gather_rows, scatter_add_rows
from common_kernels.kernel_map import KernelMap, kernel_map
from common_kernels.pack import pack, unpack
from common_kernels.ragged_topk import ragged_topk
from common_kernels.segment_reduce import segment_reduce
from common_kernels.shift_gemm import shift_gemm
from common_kernels.varlen_attention import attention_column_sums, varlen_attention

__all__ = [
    "CoordinateTable",
    "KernelMap",
    "attention_column_sums",
    "channel_shift",
    "compact",
    "gather_gemm",
    "gather_rows",
    "kernel_map",
    "pack",
    "ragged_topk",
    "scatter_add_rows",
    "segment_reduce",
    "shift_gemm",
    "unpack",
    "varlen_attention",
]
