"""The mean over the tokens that are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mean_pool(output: Any, attention_mask: Tensor) -> Tensor:
    """The mean state of each sequence's tokens that have an output, fp32 [B, C]; zeros for a sequence without any.

    Those are all tokens of a network that prunes nothing or restores, those that were left where tokens were dropped,
    and all tokens where they were merged, each with its group's state: groups weigh by their sizes.

    Args:
        output: with `last_hidden_state` [B, S, C], zeros where a token was dropped, as accelerated networks give it.
        attention_mask: [B, S], padded on either side.

    Raises:
        ValueError: an output without states, or a mask of another shape.
    """
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        raise ValueError(f"output must have last_hidden_state [B, S, C], got {type(output).__name__}")
    if attention_mask.shape != hidden.shape[:2]:
        raise ValueError(f"attention_mask must be {list(hidden.shape[:2])} [B, S], got {list(attention_mask.shape)}")
    alive = has_state(output, attention_mask)
    # A product, for sums over the middle axis are many times slower on a CPU.
    total = torch.bmm(alive.unsqueeze(1).to(torch.float32), hidden.float()).squeeze(1)
    return total / alive.sum(1, keepdim=True).clamp(min=1)


def has_state(output: Any, attention_mask: Tensor) -> Tensor:
    """[B, S] bool: the tokens that have an output."""
    alive = attention_mask.bool()
    kept = getattr(output, "kept", None)
    if kept is None or torch.equal(kept[-1].to(alive.device), alive.sum(1)):
        return alive
    # Not token_index: tokens that were merged into others have rows, those of their groups.
    return alive & (output.last_hidden_state != 0).any(-1)
