"""Rotation by position along three axes."""

from __future__ import annotations

import torch
from torch import Tensor


def pointrope(tokens: Tensor, positions: Tensor, base: float, fwd: float) -> None:
    """Rotate tokens [B, N, H, D] in place by their cells, int [B, N, 3].

    Of Q = D // 6 pairs for each axis, pair d of axis x is channels `2 Q x + d` and `2 Q x + Q + d`, which turn by the
    angle `fwd * position / base ** (d / Q)`; channels from 6 Q on stay. With -fwd it turns back, which is the gradient.

    Raises:
        ValueError: other shapes, or tokens that are not floating.
    """
    if tokens.ndim != 4 or not tokens.is_floating_point():
        raise ValueError(f"tokens must be floating [B, N, H, D], got {tokens.dtype} {list(tokens.shape)}")
    if positions.shape != (*tokens.shape[:2], 3) or positions.is_floating_point():
        raise ValueError(
            f"positions must be int {[*tokens.shape[:2], 3]}, got {positions.dtype} {list(positions.shape)}"
        )
    pairs = tokens.shape[3] // 6
    if not pairs:
        return
    turns = base ** (torch.arange(pairs, device=tokens.device, dtype=torch.float64) / pairs)
    angle = (fwd * positions[..., None] / turns).to(tokens.dtype)  # [B, N, 3, Q]
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    some = tokens[..., : 6 * pairs].unflatten(3, (3, 2, pairs))
    u, v = some.unbind(4)
    tokens[..., : 6 * pairs] = torch.stack([u * cos - v * sin, v * cos + u * sin], 4).flatten(3)
