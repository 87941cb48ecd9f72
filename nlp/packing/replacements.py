"""Methods put in place of a network's own where its code does not let packed rows in: biases by distance, MPNet.

A method is replaced on the instance, never on the class, and asks for the pass in flight: padded passes run the
network's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nlp.packing import attention
from nlp.packing.architectures import Parts
from nlp.packing.passes import in_flight


def replace(parts: Parts) -> list[tuple[nn.Module, str]]:
    """Replace what the architecture needs replaced; the modules and names, for `delattr`."""
    replaced: list[tuple[Any, str, Callable[..., Any]]] = []
    stack: Any = parts.stack
    layers: Any = parts.layers
    if parts.architecture.own_attention:
        replaced.append((stack, "compute_position_bias", _mpnet_bias(stack, stack.compute_position_bias)))
        for layer in layers:
            replaced.append((layer.attention.attn, "forward", _mpnet_attention(layer.attention.attn)))
    elif parts.architecture.relative_bias:
        first = layers[0].layer[0].SelfAttention
        replaced.append((first, "compute_bias", _t5_bias(first.compute_bias)))
    for module, name, method in replaced:
        object.__setattr__(module, name, method)
    return [(module, name) for module, name, _ in replaced]


def _longest() -> int:
    batch = in_flight()
    lengths = None if batch is None else batch.live().diff()
    return int(lengths.max()) if lengths is not None and len(lengths) else 0


def _t5_bias(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compute_bias(*args: Any, **kwargs: Any) -> Tensor:
        if in_flight() is None:
            return own(*args, **kwargs)
        longest = _longest()
        # One query at place L - 1 of 2 L - 1 keys has every distance from -(L - 1) to L - 1.
        return own(1, 2 * longest - 1, past_seen_tokens=longest - 1)[0, :, 0]

    return compute_bias


def _mpnet_bias(encoder: Any, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compute_position_bias(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if in_flight() is None:
            return own(x, *args, **kwargs)
        longest = _longest()
        distance = torch.arange(1 - longest, longest, device=x.device)
        bias: Tensor = encoder.relative_attention_bias(encoder.relative_position_bucket(distance))
        return bias.t()

    return compute_position_bias


def _mpnet_attention(module: Any) -> Callable[..., Any]:
    own = module.forward

    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Any:
        if in_flight() is None:
            return own(hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
        heads = (1, hidden_states.shape[1], -1, module.attention_head_size)
        q, k, v = (linear(hidden_states).view(heads).transpose(1, 2) for linear in (module.q, module.k, module.v))
        out, _ = attention.attention(module, q, k, v, None, position_bias=position_bias)
        return (module.o(out.flatten(2)),)

    return forward
