"""A convolution's update on a GPU: an implicit GEMM over the list of active pixels, without waiting for the device.

The list and its length stay on the device. The grid is that of a full list; programs beyond its end leave at once.
Where a program owns all channels of its pixels it compares and writes them; else new values pass through a buffer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.gather_gemm import launch
from common_kernels.gather_gemm.gpu import on_device, unit_of
from common_kernels.gather_gemm.launch import LaunchConfig
from common_kernels.reach.gpu import list_active
from common_kernels.row_update.gpu import far, settle
from common_kernels.windows import Window

_ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "hardswish": 3, "silu": 4}


def launch_config(c_in: int, c_out: int, unit: str, family: str) -> LaunchConfig:
    """`gather_gemm`'s blocks. Rows are computed, not loaded, so half as many loads are under way."""
    base = launch.launch_config(c_in, c_out, unit, family)
    return LaunchConfig(base.block_m, base.block_n, base.block_k, base.num_warps, max(base.num_stages // 2, 2))


class Layer:
    """One layer's weights as the kernels read them: [groups, taps, Cin / groups, Cout / groups] or [taps, C]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int, activation: str) -> None:
        self.bias, self.window, self.groups, self.activation = bias, window, groups, activation
        self._c_out, c_group, kernel_y, kernel_x = weight.shape
        self._depthwise = groups == self._c_out and c_group == 1
        per_group = weight.view(groups, -1, c_group, kernel_y * kernel_x)
        if self._depthwise:
            self._weight = per_group.reshape(self._c_out, -1).T.contiguous()
        else:
            self._weight = per_group.permute(0, 3, 2, 1).contiguous()

    def __call__(
        self,
        x: Tensor,
        changed: Tensor | None,
        out: Tensor,
        residual: Tensor | None,
        also: Tensor | None,
        threshold: float,
        dense: bool | None,
    ) -> Tensor:
        """`dense` is not looked at: only the CPU has the choice."""
        with on_device(x.device):
            mask, rows, count = list_active(changed, also, self.window, (*x.shape[:3],), x.device)
            if self._depthwise:
                slide(
                    x, out, mask, rows, count, self._weight, self.bias, residual, self.window, "depthwise",
                    self.activation, threshold,
                )  # fmt: skip
            else:
                self._multiply(x, out, mask, rows, count, residual, threshold)
        return mask

    def _multiply(
        self,
        x: Tensor,
        out: Tensor,
        mask: Tensor,
        rows: Tensor,
        count: Tensor,
        residual: Tensor | None,
        threshold: float,
    ) -> None:
        window, limit = self.window, mask.numel()
        groups, taps, c_in, c_out = self._weight.shape
        unit = unit_of(x)
        config = launch_config(c_in, c_out, unit, launch.device_family(x.device))
        fused = groups == 1 and c_out <= config.block_n
        new = None if fused else torch.empty(limit, self._c_out, dtype=out.dtype, device=out.device)
        grid = (triton.cdiv(limit, config.block_m), groups * triton.cdiv(c_out, config.block_n))
        packed = c_in <= launch.PACKED_CHANNELS
        conv_update_kernel[grid](
            out,
            mask,
            new,
            x,
            self._weight,
            self.bias,
            residual,
            rows,
            count,
            *x.shape[1:3],
            *out.shape[1:3],
            *window.stride,
            *window.padding,
            *window.dilation,
            c_in,
            c_out,
            threshold,
            GROUPS=groups,
            TAPS=taps,
            KERNEL_X=window.kernel[1],
            ACTIVATION=_ACTIVATIONS[self.activation],
            PACKED=packed,
            K_BLOCKS=triton.cdiv(c_in, config.block_k),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            INPUT_PRECISION="tf32" if unit == "tf32" else "ieee",
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
        if new is not None:
            settle(out, mask, new, rows, count, limit, threshold, picked=True)


def slide(
    x: Tensor,
    out: Tensor,
    mask: Tensor,
    rows: Tensor,
    count: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    window: Window,
    kind: str,
    activation: str,
    threshold: float,
    padded: bool = True,
    divisor: int = 0,
) -> None:
    """Windows over each channel by itself at the listed pixels: "depthwise" with weight [taps, C], "max" or "avg"."""
    limit, channels = mask.numel(), out.shape[-1]
    block_c = min(triton.next_power_of_2(channels), 64)
    block_m = 2048 // block_c
    new = None if channels <= block_c else torch.empty(limit, channels, dtype=out.dtype, device=out.device)
    slide_kernel[(triton.cdiv(limit, block_m), triton.cdiv(channels, block_c))](
        out,
        mask,
        new,
        x,
        weight,
        bias,
        residual,
        rows,
        count,
        *x.shape[1:3],
        *out.shape[1:3],
        *window.stride,
        *window.padding,
        *window.dilation,
        channels,
        divisor,
        threshold,
        KIND=kind,
        PADDED=padded,
        KERNEL_Y=window.kernel[0],
        KERNEL_X=window.kernel[1],
        ACTIVATION=_ACTIVATIONS[activation],
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        num_warps=4,
        enable_fp_fusion=True,
    )
    if new is not None:
        settle(out, mask, new, rows, count, limit, threshold, picked=True)


@triton.jit
def _activate(x, KIND: tl.constexpr):
    # Not tl.maximum, which turns NaN into 0.
    if KIND == 1 or KIND == 2:
        x = tl.where(x < 0, 0.0, x)
    if KIND == 2:
        x = tl.where(x > 6, 6.0, x)
    if KIND == 3:
        gate = x + 3
        gate = tl.where(gate < 0, 0.0, gate)
        gate = tl.where(gate > 6, 6.0, gate)
        x = x * gate / 6
    if KIND == 4:
        x = x / (1 + tl.exp(-x))
    return x


@triton.jit
def _finish(
    acc, out_ptr, mask_ptr, new_ptr, bias_ptr, residual_ptr, entry, pixel, used, cols, inside, channels, threshold,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Sums of a block to the buffer of new values, or, where that is None, compared with the kept ones and written."""
    cells = pixel[:, None] * channels + cols[None, :]
    valid = used[:, None] & inside[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + cells, mask=valid, other=0.0).to(tl.float32)
    rounded = _activate(acc, ACTIVATION).to(out_ptr.dtype.element_ty)
    if new_ptr is not None:
        tl.store(new_ptr + entry[:, None] * channels + cols[None, :], rounded, mask=valid)
    else:
        old = tl.load(out_ptr + cells, mask=valid, other=0.0).to(tl.float32)
        moved = tl.max(tl.where(valid, far(rounded.to(tl.float32), old, threshold), 0), 1)
        tl.store(out_ptr + cells, rounded, mask=valid & (moved > 0)[:, None])
        tl.store(mask_ptr + pixel, moved > 0, mask=used)


@triton.jit
def conv_update_kernel(
    out_ptr,  # [B, Ho, Wo, Cout]
    mask_ptr,  # [B, Ho, Wo] bool
    new_ptr,  # [list, Cout], or None: compare and write here
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    rows_ptr,
    count_ptr,
    height,
    width,
    rows,
    cols,
    stride_y,
    stride_x,
    pad_y,
    pad_x,
    dilation_y,
    dilation_x,
    c_in,  # of one group
    c_out,  # of one group
    threshold,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    KERNEL_X: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PACKED: tl.constexpr,  # few channels: taps and channels together are the inner dimension
    K_BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    count = tl.load(count_ptr)
    if first < count:
        blocks_n = tl.cdiv(c_out, BLOCK_N)
        group = (tl.program_id(1) // blocks_n).to(tl.int64)
        lanes = (tl.program_id(1) % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
        entry = first + tl.arange(0, BLOCK_M)
        used = entry < count
        pixel = tl.load(rows_ptr + entry, mask=used, other=0).to(tl.int64)
        top = (pixel // cols) % rows * stride_y - pad_y
        left = pixel % cols * stride_x - pad_x
        image = pixel // (rows * cols) * height
        weight_ptr += group * TAPS * c_in * c_out
        pitch = c_in * GROUPS

        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if PACKED:
            for k0 in range(0, TAPS * c_in, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                tap = k // c_in
                y = top[:, None] + (tap // KERNEL_X * dilation_y)[None, :]
                x = left[:, None] + (tap % KERNEL_X * dilation_x)[None, :]
                valid = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                valid &= used[:, None] & (k < TAPS * c_in)[None, :]
                source = ((image[:, None] + y) * width + x) * pitch + group * c_in + (k % c_in)[None, :]
                a = tl.load(x_ptr + source, mask=valid, other=0.0)
                b = tl.load(
                    weight_ptr + k[:, None] * c_out + lanes[None, :],
                    mask=(k < TAPS * c_in)[:, None] & (lanes < c_out)[None, :],
                    other=0.0,
                )
                acc = tl.dot(a, b, acc, input_precision=INPUT_PRECISION)
        else:
            # One flat loop over taps and channel blocks, so that loads of the next tap overlap this one's products.
            for step in range(0, TAPS * K_BLOCKS):
                tap = step // K_BLOCKS
                k = (step % K_BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
                y = top + tap // KERNEL_X * dilation_y
                x = left + tap % KERNEL_X * dilation_x
                valid = used & (y >= 0) & (y < height) & (x >= 0) & (x < width)
                source = ((image + y) * width + x) * pitch + group * c_in
                a = tl.load(x_ptr + source[:, None] + k[None, :], mask=valid[:, None] & (k < c_in)[None, :], other=0.0)
                b = tl.load(
                    weight_ptr + (tap * c_in + k)[:, None] * c_out + lanes[None, :],
                    mask=(k < c_in)[:, None] & (lanes < c_out)[None, :],
                    other=0.0,
                )
                acc = tl.dot(a, b, acc, input_precision=INPUT_PRECISION)
        _finish(
            acc, out_ptr, mask_ptr, new_ptr, bias_ptr, residual_ptr, entry, pixel, used, group * c_out + lanes,
            lanes < c_out, c_out * GROUPS, threshold, ACTIVATION,
        )  # fmt: skip


@triton.jit
def slide_kernel(
    out_ptr,
    mask_ptr,
    new_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    rows_ptr,
    count_ptr,
    height,
    width,
    rows,
    cols,
    stride_y,
    stride_x,
    pad_y,
    pad_x,
    dilation_y,
    dilation_x,
    channels,
    divisor,
    threshold,
    KIND: tl.constexpr,  # "depthwise", "max", "avg"
    PADDED: tl.constexpr,  # an average counts the padding
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    count = tl.load(count_ptr)
    if first < count:
        lanes = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = lanes < channels
        entry = first + tl.arange(0, BLOCK_M)
        used = entry < count
        pixel = tl.load(rows_ptr + entry, mask=used, other=0).to(tl.int64)
        top = (pixel // cols) % rows * stride_y - pad_y
        left = pixel % cols * stride_x - pad_x
        image = pixel // (rows * cols) * height
        acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
        if KIND == "max":
            acc += float("-inf")
        taken = tl.zeros([BLOCK_M], tl.float32)
        for ky in range(KERNEL_Y):
            for kx in range(KERNEL_X):
                y = top + ky * dilation_y
                x = left + kx * dilation_x
                valid = used & (y >= 0) & (y < height) & (x >= 0) & (x < width)
                source = ((image + y) * width + x) * channels
                cells = valid[:, None] & inside[None, :]
                value = tl.load(x_ptr + source[:, None] + lanes[None, :], mask=cells, other=0.0).to(tl.float32)
                if KIND == "depthwise":
                    tap = tl.load(weight_ptr + (ky * KERNEL_X + kx) * channels + lanes, mask=inside, other=0.0)
                    acc += value * tap.to(tl.float32)[None, :]
                elif KIND == "max":
                    # NaN wins, and stays.
                    larger = cells & ~(value <= acc) & (acc == acc)
                    acc = tl.where(larger, value, acc)
                else:
                    acc += value
                    taken += tl.where(valid, 1.0, 0.0)
        if KIND == "avg":
            if PADDED:
                # Not what a window that ceil_mode adds has beyond the padding.
                high = tl.minimum(top + KERNEL_Y, height + pad_y) - top
                wide = tl.minimum(left + KERNEL_X, width + pad_x) - left
                taken = (high * wide).to(tl.float32)
            if divisor != 0:
                taken = tl.zeros([BLOCK_M], tl.float32) + divisor
            acc = acc / tl.where(used, taken, 1.0)[:, None]
        _finish(
            acc, out_ptr, mask_ptr, new_ptr, bias_ptr, residual_ptr, entry, pixel, used, lanes, inside, channels,
            threshold, ACTIVATION,
        )  # fmt: skip
