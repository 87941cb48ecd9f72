"""A pool's update on the CPU: the windows of listed pixels, a row of channels per tap."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.conv_update.cpu_kernels import NONE, finish_row
from common_kernels.pool_update import reference
from common_kernels.pool_update.cpu_simd import max_row, max_row_bf16
from common_kernels.reach.cpu import AT, bytes_at, floats_at, int32_at, list_active, mask_spec
from common_kernels.simd import HAS_BF16_DOT, add_row, add_row_bf16, keep
from common_kernels.threads import parallel_for
from common_kernels.windows import Window

# Values read that are worth handing to another thread.
_GRAIN = 1 << 17


def pool_update(
    x: Tensor,
    changed: Tensor | None,
    out: Tensor,
    kind: str,
    window: Window,
    count_include_pad: bool,
    divisor: int | None,
    threshold: float,
) -> Tensor:
    half = x.dtype == torch.bfloat16
    if half and not HAS_BF16_DOT:
        return reference.pool_update(x, changed, out, kind, window, count_include_pad, divisor, threshold)
    batch, height, width, channels = x.shape
    spec = mask_spec(window, batch, height, width, out.shape[1], out.shape[2])
    mask = torch.empty(out.shape[:3], dtype=torch.bool)
    listed = torch.empty(mask.numel() + 1, dtype=torch.int32)
    if changed is not None:
        changed = changed.contiguous()
    count = list_active(mask.data_ptr(), 0 if changed is None else changed.data_ptr(), 0, spec, listed.data_ptr())
    parallel_for(
        _update,
        count,
        max(1, _GRAIN // (channels * window.kernel[0] * window.kernel[1])),
        x.data_ptr(),
        out.data_ptr(),
        mask.data_ptr(),
        listed.data_ptr(),
        spec,
        channels,
        half,
        kind == "max",
        count_include_pad,
        divisor or 0,
        threshold,
    )
    return mask


@njit(nogil=True, cache=True)
def _update(x, out, mask, rows, spec, channels, half, largest, padded, divisor, threshold, begin, end):
    """Listed pixels [begin, end). x, out, mask and rows are addresses; a divisor of 0 is the window's size."""
    height, width, rows_out, cols_out = spec[AT.height], spec[AT.width], spec[AT.rows], spec[AT.cols]
    kernel_y, kernel_x, stride_y, stride_x = spec[AT.kernel_y], spec[AT.kernel_x], spec[AT.stride_y], spec[AT.stride_x]
    pad_y, pad_x, dilation_y, dilation_x = spec[AT.pad_y], spec[AT.pad_x], spec[AT.dilation_y], spec[AT.dilation_x]
    pitch = (2 if half else 4) * channels
    listed, flags = int32_at(rows, end), bytes_at(mask, spec[AT.batch] * rows_out * cols_out)
    buffer = np.empty(channels, np.float32)
    base = np.int64(buffer.ctypes.data)
    sums = floats_at(base, channels)
    for i in range(begin, end):
        row = np.int64(listed[i])
        image, rest = row // (rows_out * cols_out), row % (rows_out * cols_out)
        top, left = rest // cols_out * stride_y - pad_y, rest % cols_out * stride_x - pad_x
        sums[:] = np.float32(-np.inf) if largest else np.float32(0)
        taps = 0
        for ky in range(kernel_y):
            y = top + ky * dilation_y
            if y < 0 or y >= height:
                continue
            for kx in range(kernel_x):
                z = left + kx * dilation_x
                if z < 0 or z >= width:
                    continue
                taps += 1
                source = x + ((image * height + y) * width + z) * pitch
                if largest:
                    if half:
                        max_row_bf16(base, source, channels)
                    else:
                        max_row(base, source, channels)
                elif half:
                    add_row_bf16(base, source, channels)
                else:
                    add_row(base, source, channels)
        if not largest:
            if divisor:
                taps = divisor
            elif padded:
                # Padding counts, but not what a window that ceil_mode adds has beyond it.
                taps = (min(top + kernel_y, height + pad_y) - top) * (min(left + kernel_x, width + pad_x) - left)
            share = np.float32(taps)
            for c in range(channels):
                sums[c] /= share
        finish_row(base, row, 0, out, flags, channels, half, NONE, threshold)
    keep(buffer)
