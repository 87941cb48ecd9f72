"""Compare new rows with kept ones, keep what moved too little, overwrite the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.row_update import reference
from common_kernels.windows import check_threshold

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)


def update_rows(out: Tensor, rows: Tensor, index: Tensor | None = None, *, threshold: float = 0.0) -> Tensor:
    """Overwrite the rows of `out` that differ from `rows` by more than `threshold` in some channel.

    What any operator on single pixels needs to keep its output from frame to frame, and, on a frame itself, the first
    mask of changed pixels. A row that moves less keeps its old value whole: the error stays below the threshold and
    does not add up. NaN always counts as moved; -0 equals 0. Mutates `out`; no gradients, no operator of torch.library
    (its boundary costs more than a small update).

    Args:
        out: contiguous [..., C], fp32, fp64, fp16, bf16 or uint8. A pixel is a row.
        rows: of out's dtype. [M, C] with an index of rows, else out's shape.
        index: int32 or int64 [M], distinct rows of `out` as [-1, C] in any order; or bool [...], which rows of out's
            shape to look at; None for all.
        threshold: in the units of `out`.

    Returns:
        [...] bool, which rows were overwritten.

    Raises:
        ValueError: other shapes or dtypes, an `out` that is not contiguous, a threshold below 0 or NaN; on the CPU also
            an index outside of `out`. On a GPU such an entry is left out.
    """
    check_threshold(threshold)
    if out.ndim < 1 or out.dtype not in DTYPES or not out.is_contiguous():
        kind = "" if out.is_contiguous() else ", not contiguous"
        raise ValueError(f"out must be contiguous fp32, fp64, fp16, bf16 or uint8 [..., C], got {describe(out)}{kind}")
    if rows.dtype != out.dtype or rows.device != out.device:
        raise ValueError(f"rows must have out's dtype and device, got {describe(rows)} on {rows.device}")
    wanted = out.shape
    if index is not None:
        if index.device != out.device:
            raise ValueError(f"index must be on the device of out, {out.device}, got {index.device}")
        if index.dtype == torch.bool:
            if index.shape != out.shape[:-1]:
                raise ValueError(f"index as a mask must be bool {list(out.shape[:-1])}, got {describe(index)}")
        elif index.ndim == 1 and index.dtype in (torch.int32, torch.int64):
            wanted = torch.Size((index.shape[0], out.shape[-1]))
        else:
            raise ValueError(f"index must be int32 or int64 [M] or a bool mask, got {describe(index)}")
    if rows.shape != wanted:
        raise ValueError(f"rows must be {list(wanted)}, got {describe(rows)}")
    if out.numel() == 0:
        return torch.zeros(out.shape[:-1], dtype=torch.bool, device=out.device)
    if out.device.type == "cpu" and out.dtype in (torch.float32, torch.bfloat16, torch.uint8):
        from common_kernels.row_update import cpu

        return cpu.update_rows(out, rows, index, float(threshold))
    if out.device.type == "cuda" and out.dtype != torch.float64:
        from common_kernels.row_update import gpu

        return gpu.update_rows(out, rows, index, threshold)
    return reference.update_rows(out, rows, index, threshold)
