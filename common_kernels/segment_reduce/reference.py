"""The meaning of a reduction over segments, in plain torch, on any device."""

import torch
from torch import Tensor

from common_kernels.checks import wide


def segment_reduce(src: Tensor, offsets: Tensor, reduce: str) -> Tensor:
    """out[s] = reduce of src[offsets[s] : offsets[s + 1]], accumulated in at least fp32."""
    out = src.new_full((len(offsets) - 1, *src.shape[1:]), -torch.inf if reduce == "max" else 0)
    bounds = offsets.tolist()
    for row, begin, end in zip(out, bounds, bounds[1:]):
        segment = src[begin:end].to(wide(src.dtype))
        if end > begin:
            row.copy_(segment.amax(0) if reduce == "max" else segment.sum(0) / (end - begin if reduce == "mean" else 1))
    return out
