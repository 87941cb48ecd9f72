"""The attention that accelerated networks run, registered under one name with transformers' public plug points."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from common_kernels import varlen_attention
from nlp.packing import Batch, in_flight

NAME = "trisparse"


def register() -> None:
    """Make the attention known to transformers; calling it again changes nothing.

    Raises:
        ImportError: transformers is missing, or older than its AttentionInterface.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(f"nlp needs transformers of at least 5.0: pip install 'trisparse[nlp]' ({error})") from error
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for packed rows; scaled_dot_product_attention's where rows are padded."""
    if in_flight() is not None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*args, **kwargs)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a layer: query [1, H, T, D] and un-repeated keys of a packed pass, else whatever sdpa takes.

    Returns:
        [1, T, H, D], and no matrix.
    """
    batch = in_flight()
    if batch is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal,
            position_bias=position_bias, **kwargs,
        )  # fmt: skip
    if position_bias is not None:
        return _with_position_bias(batch, query, key, value, position_bias, scaling), None
    causal = getattr(module, "is_causal", batch.causal) if is_causal is None else is_causal
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    removal = batch.removal
    if removal is None:
        out = varlen_attention(q, k, v, batch.offsets, causal=causal, window=sliding_window, scale=scaling)
        assert isinstance(out, Tensor)
        return out[None], None
    wanted = removal.wanted_importance()
    out = varlen_attention(
        q, k, v, removal.offsets, causal=causal, window=sliding_window, scale=scaling, bias=removal.bias,
        importance=wanted,
    )  # fmt: skip
    importance = None
    if isinstance(out, tuple):
        out, importance = out
    removal.record(importance, k.detach().float().mean(1) if removal.wants_keys() else None)
    return out[None], None


def _with_position_bias(
    batch: Batch, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None
) -> Tensor:
    """[1, T, H, D] where attention adds bias [1, H, S, S] by distance: sequence by sequence."""
    ends = batch.offsets.tolist()
    parts = []
    for a, b in pairwise(ends):
        n = b - a
        parts.append(
            nn.functional.scaled_dot_product_attention(
                query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], attn_mask=bias[:, :, :n, :n], scale=scale
            )
        )
    return torch.cat([query[:, :, :0], *parts], dim=2).transpose(1, 2)
