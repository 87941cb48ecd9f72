"""Block sizes and splits of the GPU's gather-GEMM, as pure functions.

They depend on channels, dtype and GPU family, never on the number of rows of one input: the same layer runs the same
way on every cloud, and a tuned choice holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from common_kernels.kernel_map.gpu_schedule import TILE

# Up to here, several taps share one block of the product's inner dimension instead of padding each to 16 channels.
PACKED_CHANNELS = 8
# Multiply-adds that an output element can gain in the time in which memory moves one byte: sustained gather-GEMM speed
# over bandwidth, of the order of an H100's or A100's (some 150e12 multiply-adds per second to 3e12 bytes per second in
# 16 bits). A split costs one fp32 sum written and read again per output element.
_MACS_PER_BYTE = {"16-bit": 50, "tf32": 25, "fp32": 8}
_SPLIT_BYTES = 8


@dataclass(frozen=True)
class LaunchConfig:
    """One program computes `block_m` output rows by `block_n` output channels in steps of `block_k` inner elements.

    For a weight gradient: `block_m` input channels by `block_n` output channels in steps of `block_k` pairs.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def device_family(device: torch.device) -> str:
    """Either "hopper" (and data-centre Blackwell), "cdna" (AMD) or "ampere": all others, and the interpreter."""
    if device.type != "cuda":
        return "ampere"
    if torch.version.hip is not None:
        return "cdna"
    # Consumer Blackwells (12.x) have Ampere's shared memory and instructions.
    return "hopper" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "ampere"


def arithmetic(dtype: torch.dtype, allow_tf32: bool) -> str:
    """The unit that multiplies: "16-bit" or "tf32" on tensor cores, "fp32" on ordinary ones."""
    if dtype != torch.float32:
        return "16-bit"
    return "tf32" if allow_tf32 else "fp32"


def launch_config(c_in: int, c_out: int, unit: str, family: str) -> LaunchConfig:
    """Blocks for `gather_gemm` from c_in to c_out channels.

    Gathered rows are the costly operand, so one program takes all output channels where they fit (up to 128), and 128
    rows, which is what the tensor cores of both Hopper (two warp groups of 64) and Ampere need to be fed from L2.
    Without tensor cores the accumulators of 64 by 64 fill the registers.

    `num_stages` counts from the load of the input row's number to the product, two loads deep, so the operands have
    half as many buffers: three, in steps of 64 (16 bits) up to 96 KiB on Hopper, which leaves room for two programs of
    its 227 KiB, and in steps of 32 up to 48 KiB on Ampere, whose smaller models have 99 KiB. CDNA (64 KiB) prefetches
    into registers and gains nothing from more than two stages.
    """
    block_n = fit(c_out, (128, 64, 32, 16), waste=1.4)
    packed = c_in <= PACKED_CHANNELS
    if unit == "fp32":
        block_k = 16 if packed else fit(c_in, (32, 16), waste=1.25)
        return LaunchConfig(64, min(block_n, 64), block_k, 4, 2 if family == "cdna" else 4 if packed else 5)
    widest = (64 if unit == "16-bit" else 32) // (2 if family == "ampere" else 1)
    block_k = min(widest, 32) if packed else fit(c_in, [k for k in (64, 32, 16) if k <= widest], waste=1.25)
    # A packed step also keeps a row number per element in shared memory.
    num_stages = 2 if family == "cdna" else 4 if packed else 6 if family == "hopper" else 8
    return LaunchConfig(TILE, block_n, block_k, 8 if block_n == 128 else 4, num_stages)


def weight_grad_config(c_in: int, c_out: int, unit: str, family: str) -> LaunchConfig:
    """Blocks for the weight gradient: each program reads the rows of all its pairs, so wide blocks save reads."""
    widest = 64 if unit == "fp32" else 128
    block_m = min(fit(c_in, (128, 64, 32, 16), waste=1.4), widest)
    block_n = min(fit(c_out, (128, 64, 32, 16), waste=1.4), widest)
    block_k = 16 if unit == "fp32" else 64 if unit == "16-bit" and family == "hopper" else 32
    num_warps = 8 if block_m * block_n == 128 * 128 else 4
    return LaunchConfig(block_m, block_n, block_k, num_warps, {"cdna": 2, "hopper": 6, "ampere": 7}[family])


def tuning_candidates(c_in: int, c_out: int, unit: str, family: str) -> dict[str, LaunchConfig]:
    """Named configurations worth timing on a device for this layer; "default" is `launch_config`'s."""
    base = launch_config(c_in, c_out, unit, family)
    candidates = {
        "default": base,
        # Twice the programs: for maps of few rows, which leave multiprocessors idle.
        "half rows": replace(base, block_m=base.block_m // 2, num_warps=4),
        "half channels": replace(base, block_n=max(base.block_n // 2, 16), num_warps=4),
        "half steps": replace(base, block_k=max(base.block_k // 2, 16)),
        "other warps": replace(base, num_warps=12 - base.num_warps),
    }
    if family != "cdna":
        # One buffer fewer lets another program share the multiprocessor, one more hides longer gathers.
        candidates["fewer buffers"] = replace(base, num_stages=base.num_stages - 2)
        candidates["more buffers"] = replace(base, num_stages=base.num_stages + 2)
    return candidates


def choose_splits(work: Sequence[int], n_rows: int, c_in: int, unit: str) -> int:
    """The number of splits (1, 2, ...) that promises the shortest time.

    Args:
        work: for each number of splits, how many (tile, tap) products its schedule has.
        n_rows: output rows, each of which is read and written once more per further split.
    """
    if c_in <= PACKED_CHANNELS:
        return 1
    costs = [
        tiles * TILE * c_in + extra * n_rows * _SPLIT_BYTES * _MACS_PER_BYTE[unit] for extra, tiles in enumerate(work)
    ]
    return costs.index(min(costs)) + 1


def pairs_per_program(n_pairs: int, n_programs: int, block: int) -> int:
    """How many pairs of one tap a program of the weight gradient sums, a multiple of `block`, at least 16 blocks.

    Args:
        n_pairs: of all taps together.
        n_programs: programs wanted for them.
    """
    return max(16, -(-n_pairs // (n_programs * block))) * block


def fit(channels: int, sizes: Sequence[int], waste: float) -> int:
    """The largest of the falling `sizes` that pads `channels` to at most `waste` times what the best of them needs."""
    padded = {size: -(-channels // size) * size for size in sizes}
    least = min(padded.values())
    return next(size for size in sizes if padded[size] <= waste * least)
