"""The shifted matrix product on a GPU: an implicit GEMM in which every input channel has a row offset of its own.

Groups are as narrow as 3 channels, so the offsets are a vector beside the channels of a block, not a number per block.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.gather_gemm import gpu as gather_gemm
from common_kernels.gather_gemm import launch
from common_kernels.gather_gemm.launch import LaunchConfig
from common_kernels.shift_gemm import reference

# Blocks of rows whose programs run side by side: they share the weights in L2.
_BLOCKS_TOGETHER = 8


def shift_gemm(
    x: Tensor,
    length: int,
    channels: Sequence[int],
    offsets: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """`out`: contiguous [R, O] to write to."""
    n_rows, (c_in, c_out) = x.shape[0], weight.shape
    if x.dtype == torch.float64 or 0 in (n_rows, c_in, c_out):
        result = reference.shift_gemm(x, length, channels, offsets, weight, bias, residual, activation)
        return result if out is None else out.copy_(result)
    out = x.new_empty(n_rows, c_out) if out is None else out
    unit = gather_gemm.unit_of(x)
    config = launch_config(c_in, c_out, unit, launch.device_family(x.device))
    # Kernels are compiled for small multiples of one distance, so that layers of other sizes share them.
    distance = math.gcd(*offsets) or 1
    blocks = triton.cdiv(n_rows, config.block_m)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        shift_gemm_kernel[(blocks * triton.cdiv(c_out, config.block_n),)](
            out,
            x.contiguous(),
            weight,
            bias,
            None if residual is None else residual.contiguous(),
            n_rows,
            blocks,
            length,
            distance,
            c_in,
            c_out,
            *weight.stride(),
            ENDS=tuple(accumulate(channels)),
            OFFSETS=tuple(offset // distance for offset in offsets),
            ACTIVATION=activation,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            GROUP_M=_BLOCKS_TOGETHER,
            INPUT_PRECISION="tf32" if unit == "tf32" else "ieee",
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
    return out


def launch_config(c_in: int, c_out: int, unit: str, family: str) -> LaunchConfig:
    """Blocks as of the gather-GEMM, whose buffers count a second load that there is none of here."""
    config = launch.launch_config(max(c_in, launch.PACKED_CHANNELS + 1), c_out, unit, family)
    return replace(config, num_stages=max(2, config.num_stages // 2))


@triton.jit
def shift_gemm_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    n_rows,
    n_blocks_m,
    length,
    distance,
    c_in,
    c_out,
    weight_stride_in,
    weight_stride_out,
    ENDS: tl.constexpr,  # of the groups of channels
    OFFSETS: tl.constexpr,  # in units of `distance` rows
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    per_group = GROUP_M * tl.cdiv(c_out, BLOCK_N)
    first = (pid // per_group) * GROUP_M
    together = min(n_blocks_m - first, GROUP_M)
    block_m = first + (pid % per_group) % together
    cols = ((pid % per_group) // together) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = block_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    place = (rows % length).to(tl.int32)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, c_in, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        offset = tl.zeros([BLOCK_K], tl.int32)
        # From the last group to the first: each overwrites what lies before its end.
        for g in tl.static_range(len(ENDS)):
            offset = tl.where(k < ENDS[len(ENDS) - 1 - g], OFFSETS[len(ENDS) - 1 - g], offset)
        offset *= distance
        source = place[:, None] + offset[None, :]
        here = (rows < n_rows)[:, None] & (k < c_in)[None, :] & (source >= 0) & (source < length)
        a = tl.load(x_ptr + (rows[:, None] + offset[None, :]) * c_in + k[None, :], mask=here, other=0.0)
        b = tl.load(
            weight_ptr + k.to(tl.int64)[:, None] * weight_stride_in + cols[None, :] * weight_stride_out,
            mask=(k < c_in)[:, None] & (cols < c_out)[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision=INPUT_PRECISION)

    cells = rows[:, None] * c_out + cols[None, :]
    inside = (rows < n_rows)[:, None] & (cols < c_out)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=cols < c_out, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + cells, mask=inside, other=0.0).to(tl.float32)
    # Not tl.maximum and tl.minimum, which turn NaN into a number.
    if ACTIVATION != "none":
        acc = tl.where(acc < 0, 0.0, acc)
    if ACTIVATION == "relu6":
        acc = tl.where(acc > 6, 6.0, acc)
    tl.store(out_ptr + cells, acc.to(out_ptr.dtype.element_ty), mask=inside)
