"""The initial weights of the small language model, in which one thing is already known: to look back and copy.

A network finds out late, and suddenly, that what followed a token the last time is likely to follow it again (induction
heads: Olsson et al., 2022); minutes of training end before that. Here the first head of the first layer starts out
looking at the previous token and the first head of the second layer at what followed the same token before. Training
changes them as everything else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def initialise(model: Any) -> None:
    """Set the weights of a LlamaForCausalLM with tied embeddings; its matrices are random already.

    What layers add to the stream of states starts at zero but for the two heads. One channel is the same in all
    embeddings, for what depends on no token.
    """
    spread, hidden = model.config.initializer_range, model.config.hidden_size
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    constant = 5 * spread
    model.model.embed_tokens.weight[:, 0] = constant
    channel = constant / math.sqrt(spread**2 + constant**2 / hidden)  # of a normalised embedding
    first = model.model.layers[0].self_attn
    size = first.head_dim
    angles = model.model.rotary_emb.inv_freq
    read, written, copied = (_orthonormal(size, hidden) for _ in range(3))
    # Values and outputs of such a gain that what a head adds is as long as an embedding.
    gain = math.sqrt(spread * math.sqrt(hidden) / math.sqrt(size))
    _look_at_previous(first, angles, channel)
    first.v_proj.weight[:size] = gain * read
    first.o_proj.weight[:, :size] = gain * written.T
    if len(model.model.layers) > 1:
        second = model.model.layers[1].self_attn
        _look_for(second, read, written)
        second.v_proj.weight[:size] = gain * copied
        second.o_proj.weight[:, :size] = gain * copied.T


def _look_at_previous(attention: Any, angles: Tensor, channel: float) -> None:
    """Query and key of the first head grow from the constant channel, the key turned ahead by one position.

    Their product is a sum of cosines of the distance less one, of the eight fastest of RoPE's angles.
    """
    query = torch.zeros_like(angles)
    query[:8] = 5 / channel
    size = attention.head_dim
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[:size] *= 0.1
    attention.q_proj.weight[:size, 0] = torch.cat([query, torch.zeros_like(query)])
    attention.k_proj.weight[:size, 0] = torch.cat([query * angles.cos(), query * angles.sin()])


def _look_for(attention: Any, wanted: Tensor, found: Tensor) -> None:
    """The first head's query reads the token itself, its key what the first layer wrote of the token before.

    Both only where RoPE turns slowly, so that the distance does not matter.
    """
    size = attention.head_dim
    half = size // 2
    slow = torch.arange(half * 9 // 16, half)
    at = torch.cat([slow, slow + half])
    # A token that is found again scores about ten.
    gain = math.sqrt(10 * math.sqrt(size) / len(slow))
    for projection, rows in ((attention.q_proj, wanted), (attention.k_proj, found)):
        projection.weight[:size] = 0
        projection.weight[at] = gain * rows[: len(at)]


def _orthonormal(n: int, channels: int) -> Tensor:
    """[n, channels]: random directions at right angles, nothing of channel 0."""
    directions, _ = torch.linalg.qr(torch.randn(channels - 1, n))
    return torch.cat([torch.zeros(n, 1), directions.T], 1)
