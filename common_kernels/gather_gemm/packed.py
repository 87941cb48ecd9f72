"""Gather-GEMM on the CPU with a weight that is packed once, for a caller that keeps it: no gradients, no graphs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.kernel_map import KernelMap


@dataclass(frozen=True)
class PackedTaps:
    """A weight [K, Cin, Cout] in the order in which the CPU's kernel reads it. `shape` is the weight's."""

    words: np.ndarray
    shape: tuple[int, int, int]
    dtype: torch.dtype


def can_pack(weight: Tensor) -> bool:
    """Whether the kernel for this weight's device and dtype reads packed weights."""
    if weight.device.type != "cpu":
        return False
    from common_kernels.gather_gemm import cpu

    return cpu.packs(weight.dtype)


def pack_taps(weight: Tensor) -> PackedTaps:
    """Pack a weight [K, Cin, Cout] for which `can_pack` holds. The result does not follow later changes of it."""
    from common_kernels.gather_gemm import cpu

    if weight.ndim != 3 or not can_pack(weight):
        raise ValueError(f"weight must be fp32 or bf16 [K, Cin, Cout] that the CPU multiplies, got {describe(weight)}")
    with torch.no_grad():
        taps, c_in, c_out = weight.shape
        return PackedTaps(cpu.pack_weight(weight.detach()), (taps, c_in, c_out), weight.dtype)


def gather_gemm_packed(
    x: Tensor,
    map: KernelMap,
    weight: PackedTaps,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`gather_gemm` with a packed weight: the same arguments, the same result [M, Cout]."""
    from common_kernels.gather_gemm import ACTIVATIONS, cpu
    from common_kernels.kernel_map.cpu_schedule import check_schedule

    taps, c_in, c_out = weight.shape
    dtype = str(weight.dtype).removeprefix("torch.")
    if x.shape != (map.n_in, c_in) or x.dtype != weight.dtype or x.device.type != "cpu":
        raise ValueError(f"x must be {dtype} [{map.n_in}, {c_in}] on the CPU, got {describe(x)}")
    if map.n_taps != taps or map.table.device != x.device:
        raise ValueError(f"map must have the weight's {taps} taps on the CPU, got {map.n_taps} on {map.table.device}")
    for name, given, shape in (("bias", bias, (c_out,)), ("residual", residual, (map.n_out, c_out))):
        if given is not None and (given.shape != shape or given.dtype != x.dtype or given.device != x.device):
            raise ValueError(f"{name} must be {dtype} {list(shape)} on the CPU, got {describe(given)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    check_schedule(map.table, map.schedule, len(x))
    with torch.no_grad():
        return cpu.multiply(x, weight.words, c_out, bias, residual, activation, map.table, map.schedule)
