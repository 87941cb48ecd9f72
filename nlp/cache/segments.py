"""Keys and values of uneven numbers of tokens, without padding: one segment for each row and group of heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from common_kernels import attention_column_sums, varlen_attention


@dataclass
class Segments:
    """Cached tokens, those of segment s = row * parts + part in the order of their positions.

    Attributes:
        keys, values: [T, h, D], h heads of keys in a segment.
        positions: [T] int64, which of its row's tokens it is, from 0, pads not counted.
        scores: [T] fp32, what a policy knows of the token.
        counts: tokens of each segment.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    scores: Tensor
    counts: list[int]

    @classmethod
    def empty(cls, n: int, like: Tensor, heads: int) -> Segments:
        """n segments of no tokens; keys as `like` [..., D]."""
        keys = like.new_empty(0, heads, like.shape[-1])
        positions = torch.empty(0, dtype=torch.int64, device=like.device)
        return cls(keys, keys.clone(), positions, positions.float(), [0] * n)

    @property
    def even(self) -> bool:
        """Whether all segments have the same number of tokens."""
        return len(set(self.counts)) <= 1

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for x in (self.keys, self.values, self.positions, self.scores))

    def offsets(self) -> Tensor:
        """[n + 1] int64, where each segment begins."""
        return offsets_of(self.counts, self.keys.device)

    def owners(self) -> Tensor:
        """[T] int64, the segment of each token."""
        n = torch.arange(len(self.counts), device=self.keys.device)
        return n.repeat_interleave(torch.tensor(self.counts, device=self.keys.device), output_size=sum(self.counts))

    def append(self, new: Segments) -> Segments:
        """Both, the new tokens behind the old ones of their segment."""
        counts = [a + b for a, b in zip(self.counts, new.counts)]
        pairs = [(self.keys, new.keys), (self.values, new.values), (self.positions, new.positions)]
        pairs.append((self.scores, new.scores))
        if not sum(self.counts):
            return Segments(new.keys, new.values, new.positions, new.scores, counts)
        n = len(counts)
        if n and self.even and new.even:
            joined = [torch.cat([a.unflatten(0, (n, -1)), b.unflatten(0, (n, -1))], 1).flatten(0, 1) for a, b in pairs]
            return Segments(joined[0], joined[1], joined[2], joined[3], counts)
        # Copies of whole segments: an index over the tokens takes several times as long.
        joined = [
            torch.cat([x for both in zip(a.split(self.counts), b.split(new.counts)) for x in both]) for a, b in pairs
        ]
        return Segments(joined[0], joined[1], joined[2], joined[3], counts)

    def take(self, index: Tensor, counts: list[int]) -> Segments:
        """The tokens of an ascending index [M], so many in each segment."""
        keys, values, positions, scores = (
            x.index_select(0, index) for x in (self.keys, self.values, self.positions, self.scores)
        )
        return Segments(keys, values, positions, scores, counts)

    def take_segments(self, index: Sequence[int]) -> Segments:
        """These segments, which may repeat."""
        begins = [0, *accumulate(self.counts)]
        device = self.keys.device
        ranges = [torch.arange(begins[s], begins[s + 1], device=device) for s in index]
        tokens = torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64, device=device)
        return self.take(tokens, [self.counts[s] for s in index])

    def attend(
        self, q: Tensor, counts: list[int], scale: float, window: int | None, importance: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of the last `counts[s]` tokens of each segment, whose queries are q [sum of counts, H, D].

        Returns:
            [sum of counts, H, D], and with `importance` [T] fp32, what each token received of the probabilities.
        """
        length = self.counts[0] if self.counts else 0
        one_each = self.even and length > 0 and window is None and set(counts) == {1}
        if one_each and not (importance and self.keys.shape[1] > 1):  # by strided products it would be slower
            return self._decode(q, length, scale, importance)
        result = varlen_attention(
            q, self.keys, self.values, offsets_of(counts, q.device), offsets_k=self.offsets(),
            causal=max(counts, default=0) > 1, window=window, scale=scale, importance=importance,
        )  # fmt: skip
        return result if isinstance(result, tuple) else (result, None)

    def column_sums(self, q: Tensor, counts: list[int], scale: float, window: int | None) -> Tensor:
        """[T] fp32, the importance of `attend` alone."""
        return attention_column_sums(
            q,
            self.keys,
            offsets_of(counts, q.device),
            offsets_k=self.offsets(),
            causal=True,
            window=window,
            scale=scale,
        )

    def _decode(self, q: Tensor, length: int, scale: float, importance: bool) -> tuple[Tensor, Tensor | None]:
        """One query for each segment of the same length: no mask, the heads of a group are rows of one product."""
        h = self.keys.shape[1]
        keys, values = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (self.keys, self.values))
        grouped = q.unflatten(1, (h, -1))  # [n, h, heads of a group, D]
        if not importance:
            out = F.scaled_dot_product_attention(grouped, keys, values, scale=scale)
            return out.flatten(1, 2), None
        weights = torch.matmul(grouped, keys.transpose(2, 3)).float().mul_(scale).softmax(-1)
        out = torch.matmul(weights.to(values.dtype), values)
        return out.flatten(1, 2), weights.sum((1, 2)).flatten()


def offsets_of(counts: list[int], device: torch.device) -> Tensor:
    """[n + 1] int64: 0 and the running sums."""
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int64, device=device)


def smooth(scores: Tensor, counts: list[int], kernel: int) -> Tensor:
    """[T]: the mean over `kernel` neighbours within the segment; beyond its ends are zeros."""
    if kernel == 1 or not len(scores):
        return scores
    half = kernel // 2
    # Segments lie apart by enough zeros not to see each other.
    gaps = torch.arange(len(counts), device=scores.device).mul_(half)
    at = torch.arange(len(scores), device=scores.device)
    at += gaps.repeat_interleave(torch.tensor(counts, device=scores.device), output_size=len(scores))
    spread = scores.new_zeros(len(scores) + half * len(counts)).index_copy_(0, at, scores)
    return F.avg_pool1d(spread[None, None], kernel, stride=1, padding=half)[0, 0, at]


def chance(positions: Tensor, salt: Tensor, seed: int) -> Tensor:
    """[T] fp32 in [0, 1): random numbers that depend on a token's position, its salt and the seed alone."""
    x = (positions * 0x9E3779B1 + salt * 0x85EBCA6B + seed * 0xC2B2AE35 + 0x27D4EB2F) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return ((x ^ (x >> 16)) >> 8).float() / math.ldexp(1, 24)
