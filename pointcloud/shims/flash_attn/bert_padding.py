"""Rows of padded batches without their padding, and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common_kernels.gather_rows import gather_rows


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The rows of [B, S, ...] where the mask [B, S] (or unused_mask, which counts as memory only) is set.

    Returns:
        rows [T, ...], their positions int64 [T] in [B * S], offsets int32 [B + 1], the longest length, and the number
        of rows that attention_mask alone keeps in each sample, int32 [B].
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    offsets = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    used = attention_mask.sum(-1, dtype=torch.int32)
    return gather_rows(hidden_states.flatten(0, 1), indices), indices, offsets, int(lengths.max()), used


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Rows [T, ...] at their positions in [B, S, ...], zeros elsewhere."""
    out = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return out.index_copy(0, indices, hidden_states).view(batch, seqlen, *hidden_states.shape[1:])


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """`input[indices]` along the first axis."""
    return gather_rows(input, indices)
