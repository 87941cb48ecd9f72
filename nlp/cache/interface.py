"""The attention function that serves PrunedCache, registered with transformers; other caches are served as before.

A PrunedLayer marks the keys that it hands on, and the mask carries the padding it was made of; the attention function
reads both marks. Nothing is kept between calls.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

# What a model's attention is called once it serves PrunedCache, by what it was, and still is for other caches.
IMPLEMENTATIONS = {"sdpa": "trisparse_cache", "eager": "trisparse_cache_eager"}


def register() -> None:
    """Make the implementations known to transformers; may be called often."""
    AttentionInterface.register(IMPLEMENTATIONS["sdpa"], _attention_or_sdpa)
    AttentionInterface.register(IMPLEMENTATIONS["eager"], _attention_or_eager)
    AttentionMaskInterface.register(IMPLEMENTATIONS["sdpa"], _sdpa_mask)
    AttentionMaskInterface.register(IMPLEMENTATIONS["eager"], _eager_mask)


def _attention_or_sdpa(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    if hasattr(key, "trisparse_layer"):
        return _attention(module, query, key, value, attention_mask, **kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _attention_or_eager(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    if hasattr(key, "trisparse_layer"):
        return _attention(module, query, key, value, attention_mask, **kwargs)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, attention_mask, **kwargs)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, S, H, D] over what the marked keys' layer keeps, and no probabilities."""
    if dropout:
        raise ValueError(f"PrunedCache is for inference, got an attention dropout of {dropout}: call model.eval()")
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"PrunedCache does not support attention with {name}")
    if kwargs.get("output_attentions"):
        raise ValueError("PrunedCache does not give out attention probabilities: pass output_attentions=False")
    real = None
    if attention_mask is not None:
        if not hasattr(attention_mask, "trisparse_real"):
            raise ValueError(
                f"with PrunedCache attention_mask must be None or [B, S] with 0 at padding, got "
                f"{list(attention_mask.shape)}: it masks for itself"
            )
        real = attention_mask.trisparse_real
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return key.trisparse_layer.attend(query, key, value, real, scale, sliding_window), None  # type: ignore[attr-defined]


def _sdpa_mask(**kwargs: Any) -> Tensor | None:
    return _marked(sdpa_mask(**kwargs), **kwargs)


def _eager_mask(**kwargs: Any) -> Tensor | None:
    return _marked(eager_mask(**kwargs), **kwargs)


def _marked(
    mask: Tensor | None, *, q_length: int, q_offset: int = 0, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """The mask, marked with the new tokens that are not padding."""
    if mask is not None:
        real = None if attention_mask is None else attention_mask[:, q_offset : q_offset + q_length]
        if real is not None and real.shape[1] < q_length:
            raise ValueError(
                f"attention_mask must cover the {q_offset + q_length} tokens so far, got {list(attention_mask.shape)}"  # type: ignore[union-attr]
            )
        mask = mask.view(mask.shape)
        mask.trisparse_real = real  # type: ignore[attr-defined]
    return mask
