"""The meaning of a mask's reach, in plain torch, on any device."""

import torch
from torch import Tensor

from common_kernels.windows import Window


def reach(changed: Tensor, window: Window) -> Tensor:
    """[B, Ho, Wo]: whether any pixel of the window, padding left out, is true."""
    batch, height, width = changed.shape
    rows, cols = window.output_size(height, width)
    after = [
        max(0, (count - 1) * window.stride[i] + window.dilation[i] * (window.kernel[i] - 1) + 1 - size)
        for i, (count, size) in enumerate(((rows, height + window.padding[0]), (cols, width + window.padding[1])))
    ]
    padded = torch.nn.functional.pad(changed, (window.padding[1], after[1], window.padding[0], after[0]))
    out = changed.new_zeros(batch, rows, cols)
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            y, x = ky * window.dilation[0], kx * window.dilation[1]
            ends = y + (rows - 1) * window.stride[0] + 1, x + (cols - 1) * window.stride[1] + 1
            out |= padded[:, y : ends[0] : window.stride[0], x : ends[1] : window.stride[1]]
    return out
