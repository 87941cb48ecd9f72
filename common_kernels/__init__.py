"""Operators on rows, maps and segments, shared by the point-cloud, video and language packages.

One idea: for each output row, gather some input rows, multiply, sum. This package knows no domain.
"""

from common_kernels.gather_gemm import gather_gemm
from common_kernels.kernel_map import KernelMap, kernel_map

__all__ = ["KernelMap", "gather_gemm", "kernel_map"]
