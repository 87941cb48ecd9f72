"""The attention that accelerated networks run, registered under one name with transformers' public plug points."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from common_kernels import varlen_attention
from nlp.packing.architectures import Architecture
from nlp.packing.passes import Batch, in_flight, wants_attentions

NAME = "trisparse"
# For networks whose own attention, which padded passes run, adds its mask to the scores.
ADDITIVE = "trisparse_additive"
# What transformers hands to every attention and what changes nothing in its values, or is looked after elsewhere.
_KNOWN = frozenset((
    "dropout", "position_ids", "cache_position", "position_embeddings", "use_cache", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch", "logits_to_keep", "labels",
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "is_first_iteration", "deterministic",
))  # fmt: skip


def of(architecture: Architecture) -> str:
    """The attention of an architecture's accelerated networks."""
    return ADDITIVE if architecture.own_attention else NAME


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
    AttentionInterface.register(ADDITIVE, attention)
    AttentionMaskInterface.register(ADDITIVE, additive_mask)


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for packed rows; scaled_dot_product_attention's where rows are padded."""
    if in_flight() is not None:
        return None
    from transformers.masking_utils import eager_mask, sdpa_mask

    return (eager_mask if wants_attentions() else sdpa_mask)(*args, **kwargs)


def additive_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for packed rows; the eager attention's where rows are padded."""
    if in_flight() is not None:
        return None
    from transformers.masking_utils import eager_mask

    return eager_mask(*args, **kwargs)


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
) -> tuple[Tensor, Tensor | None]:
    """Attention of a layer: query [1, H, T, D] and un-repeated keys of a packed pass, else whatever sdpa takes.

    Returns:
        [1, T, H, D], and no matrix; in a padded pass that must give it, the matrix [B, H, S, S] too.

    Raises:
        ValueError: an option that would change the values and is not known here, as a cap of the scores or sinks.
    """
    batch = in_flight()
    if batch is not None and not query.dtype == key.dtype == value.dtype:
        # Under autocast, rotations by fp32 tables give fp32 queries and keys beside values of the lower precision.
        query, key, value = (each.to(_product_dtype(value)) for each in (query, key, value))
    if batch is None:
        if wants_attentions():
            own: Any = sys.modules[type(module).__module__]
            result: tuple[Tensor, Tensor] = own.eager_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window,
                **({} if position_bias is None else {"position_bias": position_bias}), **kwargs,
            )  # fmt: skip
            return result
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal,
            position_bias=position_bias, **kwargs,
        )  # fmt: skip
    unknown = [name for name, given in kwargs.items() if given is not None and name not in _KNOWN]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} was called with {', '.join(unknown)}, "
            "which attention of packed rows does not know"
        )
    if position_bias is not None:
        return _with_position_bias(batch, query, key, value, position_bias, scaling), None
    causal = getattr(module, "is_causal", batch.causal) if is_causal is None else is_causal
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    removal = batch.removal
    if removal is None:
        out = varlen_attention(q, k, v, batch.live(), causal=causal, window=sliding_window, scale=scaling)
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


def _product_dtype(value: Tensor) -> torch.dtype:
    """What autocast computes attention in; without it the dtype of the values."""
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype


def _with_position_bias(
    batch: Batch, query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float | None
) -> Tensor:
    """[1, T, H, D] where attention adds a bias by distance, sequence by sequence.

    Args:
        table: [H, 2 L - 1] bias of the distances (key - query) from 1 - L to L - 1, L at least the longest length.
    """
    longest = (table.shape[1] + 1) // 2
    table = table.to(query.dtype)
    parts = [query[:, :, :0]]
    for a, b in pairwise(batch.live().tolist()):
        n = b - a
        if not n:
            continue
        # With the queries in reverse order the bias of query i and key j is entry i + j: a view, no matrix.
        bias = table[:, longest - n : longest + n - 1].unfold(1, n, 1)[None]
        if bias.is_cuda:
            bias = bias.contiguous()  # kernels there want aligned rows
        q = query[:, :, a:b].flip(2)
        out = scaled_dot_product_attention(q, key[:, :, a:b], value[:, :, a:b], attn_mask=bias, scale=scale)
        parts.append(out.flip(2))
    return torch.cat(parts, dim=2).transpose(1, 2)
