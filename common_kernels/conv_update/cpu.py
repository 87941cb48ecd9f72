"""A convolution's update on the CPU: the active pixels are listed, their windows multiplied row by row.

No tile is gathered: the register tiles of `gather_gemm` read each tap's row of channels where it lies.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common_kernels.conv_update import cpu_kernels, reference
from common_kernels.conv_update.cpu_kernels import BLOCK, DEPTHWISE_BLOCK, Spec
from common_kernels.conv_update.density import dense_pays
from common_kernels.conv_update.library import LibraryConvolution
from common_kernels.gather_gemm.cpu import pack_weight
from common_kernels.reach.cpu import list_active, mask_spec
from common_kernels.row_update.cpu import update_rows
from common_kernels.simd import HAS_BF16_DOT
from common_kernels.threads import parallel_for
from common_kernels.windows import Window

_ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "hardswish": 3, "silu": 4}
# Multiply-adds worth handing to another thread, which takes some 30 µs to begin.
_GRAIN = 2_000_000
# Channels up to which neighbouring taps are multiplied as one: more pay for the sums' way in and out of the registers.
_FEW_CHANNELS = 8


class Layer:
    """One layer's packed weights, and per input size what the kernels need to know."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int,
        activation: str,
        library: LibraryConvolution,
    ) -> None:
        self.weight, self.bias, self.window, self.groups, self.activation = weight, bias, window, groups, activation
        self._half = weight.dtype == torch.bfloat16
        self._c_out, c_group, kernel_y, kernel_x = weight.shape
        self._c_in, self._taps = c_group * groups, kernel_y * kernel_x
        self._macs = self._c_out * c_group * self._taps
        self._library = library
        self._depthwise = groups == self._c_in == self._c_out
        self._sizes: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray, tuple[int, int, int]]] = {}
        start = torch.zeros(self._c_out) if bias is None else bias.float().cpu()
        if self._depthwise:
            self._run, self._steps, self._columns, copies = (1, 1), 1, self._c_out, False
            self._packed = weight.float().reshape(self._c_out, self._taps).T.contiguous().numpy()
            self._start = start.contiguous().numpy()
        else:
            self._run = _run_of(window, c_group, groups, self._half)
            inputs = self._run[0] * self._run[1] * c_group
            copies = self._run[0] > 1 or (self._half and inputs % 2 == 1)
            per_group = weight.view(groups, -1, c_group, kernel_y, kernel_x).permute(0, 3, 4, 2, 1)
            runs = per_group.reshape(groups * self._taps * c_group // inputs, inputs, self._c_out // groups)
            self._packed = pack_weight(runs)
            self._steps, self._columns = self._packed.shape[1:]
            self._start = np.zeros((groups, self._columns), np.float32)
            self._start[:, : self._c_out // groups] = start.view(groups, -1).numpy()
        self._copies = copies
        self._zeros = np.zeros(max(self._c_in, self._steps), np.float32)
        self._addresses = tuple(each.ctypes.data for each in (self._packed, self._start, self._zeros))

    def __call__(
        self,
        x: Tensor,
        changed: Tensor | None,
        out: Tensor,
        residual: Tensor | None,
        also: Tensor | None,
        threshold: float,
        dense: bool | float | None,
    ) -> Tensor:
        if self._half and not HAS_BF16_DOT:
            return reference.conv_update(
                x, changed, self.weight, self.bias, out, self.window, self.groups, residual, also, self.activation,
                threshold,
            )  # fmt: skip
        size = (x.shape[0], x.shape[1], x.shape[2])
        known = self._sizes.get(size)
        if known is None:
            known = self._sizes[size] = self._describe(*size)
        spec, masks, shape = known
        total = shape[0] * shape[1] * shape[2]
        mask = torch.empty(shape, dtype=torch.bool)
        listed = torch.empty(total + 1, dtype=torch.int32)
        mask_at, listed_at = mask.data_ptr(), listed.data_ptr()
        count = list_active(
            mask_at,
            0 if changed is None else changed.data_ptr(),
            0 if also is None else also.data_ptr(),
            masks,
            listed_at,
        )
        if count == 0:
            return mask
        added = 0 if residual is None else residual.data_ptr()
        if dense is None:
            dense = dense_pays(self._c_in, self._c_out, self._taps, self.groups, x.dtype, count / total)
        elif not isinstance(dense, bool):
            dense = count >= dense * total
        if dense:
            added_planes = None if residual is None else residual.permute(0, 3, 1, 2)
            new = self._library(x.permute(0, 3, 1, 2), added_planes).permute(0, 2, 3, 1)
            return update_rows(out, new, mask, threshold)
        block = DEPTHWISE_BLOCK if self._depthwise else BLOCK
        parallel_for(
            cpu_kernels.update_depthwise if self._depthwise else cpu_kernels.update_blocks,
            -(-count // block),
            max(1, _GRAIN // (block * self._macs)),
            x.data_ptr(),
            *self._addresses,
            added,
            out.data_ptr(),
            mask_at,
            listed_at,
            count,
            spec,
            threshold,
        )
        return mask

    def _describe(self, batch: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
        window = self.window
        rows, cols = window.output_size(height, width)
        (kernel_y, kernel_x), (stride_y, stride_x) = window.kernel, window.stride
        (pad_y, pad_x), (dilation_y, dilation_x) = window.padding, window.dilation
        run_y, run_x = self._run
        spec = Spec(
            height=height, width=width, rows=rows, cols=cols, kernel_y=kernel_y, kernel_x=kernel_x, stride_y=stride_y,
            stride_x=stride_x, pad_y=pad_y, pad_x=pad_x, dilation_y=dilation_y, dilation_x=dilation_x, c_in=self._c_in,
            c_out=self._c_out, groups=self.groups, half=int(self._half), activation=_ACTIVATIONS[self.activation],
            run_y=run_y, run_x=run_x, steps=self._steps, columns=self._columns, copies=int(self._copies),
        )  # fmt: skip
        return np.array(spec, np.int64), mask_spec(window, batch, height, width, rows, cols), (batch, rows, cols)


def _run_of(window: Window, channels: int, groups: int, half: bool) -> tuple[int, int]:
    """Taps (vertical, horizontal) that are multiplied as one row of inputs."""
    kernel_y, kernel_x = window.kernel
    # Neighbouring taps lie side by side in memory where no dilation and no other group's channels part them.
    if channels > _FEW_CHANNELS or window.dilation[1] != 1 or groups != 1:
        return 1, 1
    # A step of bf16 reads two inputs. An odd run has to be copied, so the whole window may as well be one.
    return (kernel_y if half and kernel_x * channels % 2 else 1), kernel_x
