"""The meaning of the best rows of each segment, in plain torch, on any device."""

import torch
from torch import Tensor


def ragged_topk(score: Tensor, offsets: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Rows by segment, then NaN last, then falling score, then as they came; the first keep[b] of each segment."""
    segment = torch.repeat_interleave(offsets.diff())
    order = torch.arange(score.shape[0], device=score.device)
    for rank in (-score, score.isnan().to(torch.int8), segment):
        order = order[torch.sort(rank[order], stable=True)[1]]
    place = torch.arange(score.shape[0], device=score.device) - offsets[segment]
    index = order[place < keep[segment]]
    ends = torch.nn.functional.pad(keep.cumsum(0), [1, 0])
    return torch.sort(index)[0], ends.to(offsets.dtype)
