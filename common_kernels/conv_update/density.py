"""From which share of active pixels on the library's dense convolution is faster on a CPU."""

from __future__ import annotations

import torch


def dense_pays(c_in: int, c_out: int, taps: int, groups: int, dtype: torch.dtype, density: float) -> bool:
    """Whether the library's dense convolution and a compare are faster than ours at a share `density` of active pixels.

    A plain function of the layer, not a search: shares measured on one thread of a CPU with AVX-512. Where register
    tiles are full (16 or more channels in and out, and depthwise), ours needs no more time than the library even with
    everything active, and never gives way.
    """
    if groups == c_in == c_out:
        return False
    if groups > 1:
        width = min(c_in, c_out) // groups
        return density > (0.12 if width < 8 else 0.35 if width < 16 else 0.8 if width < 32 else 1.0)
    if taps > 1 and c_in <= 4:
        return density > (0.75 if taps > 9 else 0.6 if dtype == torch.float32 else 0.33)
    return False
