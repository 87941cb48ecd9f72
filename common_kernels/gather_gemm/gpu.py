"""Gather-GEMM on a GPU: an output-stationary GEMM over the tiles of `kernel_map/gpu_schedule.py`.

A program owns a block of rows of one tile and a block of output channels. It walks the tile's entries (the taps that
some row of the tile has), gathers one input row per output row (zeros for none), multiplies by the tap's weights on
tensor cores, and writes each output once, with bias, residual and activation applied. Where the schedule splits the
taps, one launch per group adds to fp32 sums in a fixed order. Nothing is added atomically.

A row of x that is not there counts as zeros: no address comes from a number that was not compared with what lies there.
A row without a tap multiplies it by zeros if its tile needs the tap: infinite weights of that tap turn it into NaN.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.gather_gemm import launch, reference
from common_kernels.gather_gemm.launch import LaunchConfig
from common_kernels.kernel_map.gpu_schedule import TILE, Schedule, Split

# Tiles whose programs run side by side: neighbours need nearly the same taps, so their weights stay in L2.
_TILES_TOGETHER = 8
_WEIGHT_GRAD_PROGRAMS = 1024
_REDUCE_BLOCK = 512


def gather_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    table: Tensor,
    schedule: Sequence[Tensor],
    *,
    n_splits: int | None = None,
    config: LaunchConfig | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`reference.gather_gemm` from a schedule of `gpu_schedule.map_schedule`. `weight` may have any strides.

    Args:
        n_splits: 1 to the schedule's number of splits; None for the cost model's choice.
        config: None for `launch_config`'s.
        out: contiguous [M, Cout] to write to.
    """
    n_rows, (_, c_in, c_out) = table.shape[1], weight.shape
    if x.dtype == torch.float64 or 0 in (x.numel(), n_rows, c_in, c_out):
        result = reference.gather_gemm(x, table, weight, bias, residual, activation)
        return result if out is None else out.copy_(result)
    named = Schedule.of(schedule)
    unit = unit_of(x)
    if n_splits is None:
        n_splits = launch.choose_splits(named.work, n_rows, c_in, unit)
    config = config or launch.launch_config(c_in, c_out, unit, launch.device_family(x.device))
    out = x.new_empty(n_rows, c_out) if out is None else out
    x = x.contiguous()
    with on_device(x.device):
        _run(out, x, weight, bias, residual, activation, named.split(n_splits), config, unit)
    return out


def _run(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    split: Split,
    config: LaunchConfig,
    unit: str,
) -> None:
    n_rows, c_out = out.shape
    c_in = x.shape[1]
    blocks = triton.cdiv(n_rows, config.block_m)
    grid = (blocks * triton.cdiv(c_out, config.block_n),)
    n_groups = len(split.order)
    sums = torch.empty(n_rows, c_out, dtype=torch.float32, device=x.device) if n_groups > 1 else None
    for group in range(n_groups):
        last = group == n_groups - 1
        gather_gemm_kernel[grid](
            out if last else None,
            sums,
            x,
            weight,
            bias if last else None,
            residual.contiguous() if last and residual is not None else None,
            split.order[group],
            split.offsets[group],
            split.taps,
            split.source,
            n_rows,
            x.shape[0],
            blocks,
            c_in,
            c_out,
            *weight.stride(),
            ADD_SUMS=group > 0,
            RELU=last and activation == "relu",
            PACKED=c_in <= launch.PACKED_CHANNELS,
            K_BLOCKS=triton.cdiv(c_in, config.block_k),
            EVEN_K=c_in % config.block_k == 0,
            TILE=TILE,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            GROUP_M=_TILES_TOGETHER,
            INPUT_PRECISION="tf32" if unit == "tf32" else "ieee",
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )


@triton.jit
def gather_gemm_kernel(
    out_ptr,  # [M, Cout], or None: only the sums are written
    sums_ptr,  # [M, Cout] fp32, or None where there is one group
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    order_ptr,
    offsets_ptr,
    taps_ptr,
    source_ptr,
    n_rows,
    n_in,
    n_blocks_m,
    c_in,
    c_out,
    weight_stride_tap,
    weight_stride_in,
    weight_stride_out,
    ADD_SUMS: tl.constexpr,
    RELU: tl.constexpr,
    PACKED: tl.constexpr,
    K_BLOCKS: tl.constexpr,
    EVEN_K: tl.constexpr,
    TILE: tl.constexpr,
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
    # Rows with the rarest taps, which have the most taps, are last in order: start with them, end with the light ones.
    block_m = n_blocks_m - 1 - first - (pid % per_group) % together
    cols = ((pid % per_group) // together) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = (block_m * BLOCK_M) // TILE
    lanes = (block_m * BLOCK_M) % TILE + tl.arange(0, BLOCK_M)
    begin = tl.load(offsets_ptr + tile)
    end = tl.load(offsets_ptr + tile + 1)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if PACKED:
        # Few channels: taps and channels together are the inner dimension, so that padding is paid once per tile.
        inner = (end - begin) * c_in
        for k0 in range(0, inner, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            entry = begin + k // c_in
            channel = k % c_in
            used = k < inner
            source = tl.load(
                source_ptr + entry.to(tl.int64)[None, :] * TILE + lanes[:, None], mask=used[None, :], other=-1
            )
            there = (source >= 0) & (source < n_in)
            a = tl.load(x_ptr + source.to(tl.int64) * c_in + channel[None, :], mask=there, other=0.0)
            tap = tl.load(taps_ptr + entry, mask=used, other=0).to(tl.int64)
            weight_rows = tap * weight_stride_tap + channel * weight_stride_in
            b = tl.load(
                weight_ptr + weight_rows[:, None] + cols[None, :] * weight_stride_out,
                mask=used[:, None] & (cols < c_out)[None, :],
                other=0.0,
            )
            acc = tl.dot(a, b, acc, input_precision=INPUT_PRECISION)
    else:
        # One flat loop over entries and channel blocks, so that loads of the next entry overlap this one's products.
        for step in range(0, (end - begin) * K_BLOCKS):
            entry = begin + step // K_BLOCKS
            k = (step % K_BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
            source = tl.load(source_ptr + entry.to(tl.int64) * TILE + lanes)
            there = (source >= 0) & (source < n_in)
            tap = tl.load(taps_ptr + entry).to(tl.int64)
            a_ptrs = x_ptr + source.to(tl.int64)[:, None] * c_in + k[None, :]
            b_ptrs = weight_ptr + tap * weight_stride_tap + k[:, None] * weight_stride_in
            b_ptrs += cols[None, :] * weight_stride_out
            if EVEN_K:
                a = tl.load(a_ptrs, mask=there[:, None], other=0.0)
                b = tl.load(b_ptrs, mask=(cols < c_out)[None, :], other=0.0)
            else:
                a = tl.load(a_ptrs, mask=there[:, None] & (k < c_in)[None, :], other=0.0)
                b = tl.load(b_ptrs, mask=(k < c_in)[:, None] & (cols < c_out)[None, :], other=0.0)
            acc = tl.dot(a, b, acc, input_precision=INPUT_PRECISION)

    rows = tl.load(order_ptr + slots, mask=slots < n_rows, other=0).to(tl.int64)
    cells = rows[:, None] * c_out + cols[None, :]
    inside = ((slots < n_rows) & (rows >= 0) & (rows < n_rows))[:, None] & (cols < c_out)[None, :]
    if ADD_SUMS:
        acc += tl.load(sums_ptr + cells, mask=inside, other=0.0)
    if out_ptr is None:
        tl.store(sums_ptr + cells, acc, mask=inside)
    else:
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + cols, mask=cols < c_out, other=0.0).to(tl.float32)[None, :]
        if residual_ptr is not None:
            acc += tl.load(residual_ptr + cells, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            # Not tl.maximum, which turns NaN into 0.
            acc = tl.where(acc < 0, 0.0, acc)
        tl.store(out_ptr + cells, acc.to(out_ptr.dtype.element_ty), mask=inside)


def weight_grad(
    x: Tensor,
    grad: Tensor,
    table: Tensor,
    schedule: Sequence[Tensor],
    *,
    config: LaunchConfig | None = None,
    n_programs: int = _WEIGHT_GRAD_PROGRAMS,
) -> Tensor:
    """`reference.weight_grad` from a schedule of `gpu_schedule.map_schedule`, fp32 [K, Cin, Cout].

    The pairs of each tap are cut into chunks. A program sums the products of one chunk for one block of channels; a
    second kernel adds the chunks of each tap in order.

    Args:
        config: None for `weight_grad_config`'s.
        n_programs: how many programs share the pairs, about.
    """
    n_taps, c_in, c_out = len(table), x.shape[1], grad.shape[1]
    if x.dtype == torch.float64 or 0 in (x.numel(), grad.numel()):
        return reference.weight_grad(x, grad, table)
    named = Schedule.of(schedule)
    n_pairs = named.pairs.shape[1]
    unit = unit_of(x)
    config = config or launch.weight_grad_config(c_in, c_out, unit, launch.device_family(x.device))
    blocks = triton.cdiv(c_in, config.block_m) * triton.cdiv(c_out, config.block_n)
    chunk = launch.pairs_per_program(n_pairs, max(n_programs // blocks, 1), config.block_k)
    # Each tap may end with a chunk that is not full.
    n_chunks = n_pairs // chunk + n_taps
    partial = torch.empty(n_chunks, c_in, c_out, dtype=torch.float32, device=x.device)
    out = torch.empty(n_taps, c_in, c_out, dtype=torch.float32, device=x.device)
    x, grad = x.contiguous(), grad.contiguous()
    chunk_ends = torch.empty(n_taps, dtype=torch.int32, device=x.device)
    taps_block = triton.next_power_of_2(n_taps)
    with on_device(x.device):
        plan_chunks_kernel[(1,)](chunk_ends, named.pair_offsets, n_taps, chunk, TAPS=taps_block, num_warps=4)
        weight_grad_kernel[(n_chunks, blocks)](
            partial,
            x,
            grad,
            named.pairs,
            named.pair_offsets,
            chunk_ends,
            n_pairs,
            x.shape[0],
            grad.shape[0],
            n_taps,
            c_in,
            c_out,
            chunk,
            TAPS=taps_block,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            INPUT_PRECISION="tf32" if unit == "tf32" else "ieee",
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
        add_chunks_kernel[(n_taps, triton.cdiv(c_in * c_out, _REDUCE_BLOCK))](
            out, partial, chunk_ends, c_in * c_out, BLOCK=_REDUCE_BLOCK, num_warps=4, enable_fp_fusion=True
        )
    return out


@triton.jit
def plan_chunks_kernel(ends_ptr, offsets_ptr, n_taps, chunk, TAPS: tl.constexpr):
    """ends[k]: how many chunks the taps up to and with k have."""
    taps = tl.arange(0, TAPS)
    begins = tl.load(offsets_ptr + taps, mask=taps < n_taps, other=0)
    ends = tl.load(offsets_ptr + taps + 1, mask=taps < n_taps, other=0)
    chunks = ((ends - begins + chunk - 1) // chunk).to(tl.int32)
    tl.store(ends_ptr + taps, tl.cumsum(chunks), mask=taps < n_taps)


@triton.jit
def weight_grad_kernel(
    partial_ptr,
    x_ptr,
    grad_ptr,
    pairs_ptr,
    offsets_ptr,
    chunk_ends_ptr,
    n_pairs,
    n_in,
    n_out,
    n_taps,
    c_in,
    c_out,
    chunk,
    TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    taps = tl.arange(0, TAPS)
    chunk_ends = tl.load(chunk_ends_ptr + taps, mask=taps < n_taps, other=2147483647)
    tap = tl.sum((chunk_ends <= pid).to(tl.int32))
    # Programs beyond the last chunk have nothing to do.
    if tap < n_taps:
        first_chunk = tl.load(chunk_ends_ptr + tap - 1, mask=tap > 0, other=0)
        begin = tl.load(offsets_ptr + tap) + (pid - first_chunk).to(tl.int64) * chunk
        end = tl.minimum(begin + chunk, tl.load(offsets_ptr + tap + 1))
        n_blocks_n = tl.cdiv(c_out, BLOCK_N)
        block = tl.program_id(1)
        rows = (block // n_blocks_n) * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = (block % n_blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(begin, end, BLOCK_K):
            pairs = first + tl.arange(0, BLOCK_K)
            source = tl.load(pairs_ptr + pairs, mask=pairs < end, other=0).to(tl.int64)
            target = tl.load(pairs_ptr + n_pairs + pairs, mask=pairs < end, other=0).to(tl.int64)
            there = (pairs < end) & (source >= 0) & (source < n_in) & (target >= 0) & (target < n_out)
            a = tl.load(
                x_ptr + source[:, None] * c_in + rows[None, :],
                mask=there[:, None] & (rows < c_in)[None, :],
                other=0.0,
            )
            b = tl.load(
                grad_ptr + target[:, None] * c_out + cols[None, :],
                mask=there[:, None] & (cols < c_out)[None, :],
                other=0.0,
            )
            acc = tl.dot(tl.trans(a), b, acc, input_precision=INPUT_PRECISION)
        cells = pid.to(tl.int64) * c_in * c_out + rows[:, None] * c_out + cols[None, :]
        tl.store(partial_ptr + cells, acc, mask=(rows < c_in)[:, None] & (cols < c_out)[None, :])


@triton.jit
def add_chunks_kernel(out_ptr, partial_ptr, chunk_ends_ptr, n_cells, BLOCK: tl.constexpr):
    tap = tl.program_id(0)
    begin = tl.load(chunk_ends_ptr + tap - 1, mask=tap > 0, other=0)
    end = tl.load(chunk_ends_ptr + tap)
    cells = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    partial_ptrs = partial_ptr + begin.to(tl.int64) * n_cells + cells
    for _ in range(begin, end):
        acc += tl.load(partial_ptrs, mask=cells < n_cells, other=0.0)
        partial_ptrs += n_cells
    tl.store(out_ptr + tap.to(tl.int64) * n_cells + cells, acc, mask=cells < n_cells)


def unit_of(x: Tensor) -> str:
    """Which arithmetic multiplies x: "fp32", "tf32" or "16-bit"."""
    # AMD's Triton backend has no TF32 arithmetic on every CDNA generation.
    return launch.arithmetic(x.dtype, _allow_tf32() and torch.version.hip is None)


def _allow_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    # torch 2.9 replaced allow_tf32, and raises where one is set and the other read.
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
