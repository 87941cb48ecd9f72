"""Methods put in place of a network's own where its code does not let packed rows in: biases by distance, MPNet.

A method is replaced on the instance, never on the class, and asks for the pass in flight: padded passes run the
network's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nlp.packing import attention
from nlp.packing.architectures import Parts
from nlp.packing.passes import in_flight


def replace(parts: Parts) -> list[tuple[nn.Module, str]]:
    """Replace what the architecture needs replaced; the modules and names, for `delattr`."""
    replaced: list[tuple[Any, str, object]] = []
    stack: Any = parts.stack
    layers: Any = parts.layers
    if parts.architecture.own_attention:
        replaced.append((stack, "compute_position_bias", _MPNetBias(stack)))
        for layer in layers:
            replaced.append((layer.attention.attn, "forward", _MPNetAttention(layer.attention.attn)))
    elif parts.architecture.relative_bias:
        first = layers[0].layer[0].SelfAttention
        replaced.append((first, "compute_bias", _T5Bias(first)))
    for module, name, method in replaced:
        object.__setattr__(module, name, method)
    return [(module, name) for module, name, _ in replaced]


def _longest() -> int:
    batch = in_flight()
    lengths = None if batch is None else batch.live().diff()
    return int(lengths.max()) if lengths is not None and len(lengths) else 0


# Objects with `__call__`, and not functions within functions: they are copied and pickled along with the module.
@dataclass(eq=False)
class _T5Bias:
    module: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        own = type(self.module).compute_bias
        if in_flight() is None:
            return own(self.module, *args, **kwargs)
        longest = _longest()
        # One query at place L - 1 of 2 L - 1 keys has every distance from -(L - 1) to L - 1.
        return own(self.module, 1, 2 * longest - 1, past_seen_tokens=longest - 1)[0, :, 0]


@dataclass(eq=False)
class _MPNetBias:
    module: Any  # the encoder

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if in_flight() is None:
            return type(self.module).compute_position_bias(self.module, x, *args, **kwargs)
        longest = _longest()
        distance = torch.arange(1 - longest, longest, device=x.device)
        bias: Tensor = self.module.relative_attention_bias(self.module.relative_position_bucket(distance))
        return bias.t()


@dataclass(eq=False)
class _MPNetAttention:
    module: Any

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Any:
        module = self.module
        if in_flight() is None:
            return type(module).forward(
                module, hidden_states, attention_mask, position_bias, output_attentions, **kwargs
            )
        heads = (1, hidden_states.shape[1], -1, module.attention_head_size)
        q, k, v = (linear(hidden_states).view(heads).transpose(1, 2) for linear in (module.q, module.k, module.v))
        out, _ = attention.attention(module, q, k, v, None, position_bias=position_bias)
        return (module.o(out.flatten(2)),)
