"""The meaning of stream compaction, in plain torch, on any device."""

import torch
from torch import Tensor


def compact(mask: Tensor) -> Tensor:
    """The rows where mask is true, ascending."""
    return torch.nonzero(mask).squeeze(1).to(torch.int32)
