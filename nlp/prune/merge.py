"""Merge the most similar tokens, and let each weigh as many as it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from common_kernels import ragged_topk
from common_models.errors import ArgumentError
from nlp.prune.cascade import Scheduled
from nlp.prune.policy import Live, Plan


@dataclass(frozen=True)
class Merge(Scheduled):
    """Merges tokens with similar keys, at most half of them after one layer.

    Within a sequence the tokens that are not protected take turns in two sets; each of the second finds its nearest of
    the first by the cosine of keys averaged over heads, and the most similar pairs merge, as many as the schedule asks.
    A merged token has the mean state of those it stands for, their number in every softmax that looks at it, and the
    place of the one it was merged into. In the end every token has the state of its group, so that a mean over all
    tokens weighs each group by its size.

    Args:
        keep, layers, protect, min_tokens: see `Scheduled`. Protected tokens neither merge nor are merged into.

    Raises:
        ValueError: an argument outside of its range; a causal network.

    Source: the idea of bipartite merging with proportional attention, Token Merging (Bolya et al., 2023).
    """

    def drops(self, n_layers: int) -> tuple[int, ...]:
        """The layers that "auto" stands for: all of the first half."""
        return tuple(range(1, max(2, n_layers // 2 + 1)))[: max(n_layers - 1, 0)]

    def check(self, n_layers: int, causal: bool) -> None:
        super().check(n_layers, causal)
        if causal:
            raise ArgumentError(
                "Merge",
                "cannot serve a causal network: a merged token carries states of later tokens to earlier ones; "
                "Cascade can",
            )

    def wants_keys(self, layer: int, n_layers: int) -> bool:
        each = self.shares(n_layers)
        return layer + 1 < n_layers and each[layer + 1] < each[layer]

    def plan(self, live: Live) -> Plan | None:
        keep = self.counts(live)
        if keep is None or live.keys is None:
            return None
        free = ~live.protected
        n_free = live.count(free)
        merges = torch.minimum(live.lengths - keep, n_free // 2)
        if not bool(merges.any()):
            return None
        # Turns are counted over the free tokens of each sequence: an odd one is offered, an even one receives.
        turns = torch.nn.functional.pad(free.cumsum(0), [1, 0])
        turn = turns[:-1] - turns.index_select(0, live.offsets[:-1]).index_select(0, live.sequence())
        offered = (free & (turn % 2 == 1)).nonzero()[:, 0]
        receiving = (free & (turn % 2 == 0)).nonzero()[:, 0]
        n_offered = n_free // 2
        keys = torch.nn.functional.normalize(live.keys.float(), dim=1)
        similarity, nearest = most_similar(
            keys.index_select(0, offered), keys.index_select(0, receiving), n_offered, n_free - n_offered
        )
        merged, _ = ragged_topk(similarity, _offsets(n_offered), merges)
        gone = offered.index_select(0, merged)
        stays = torch.ones_like(free)
        stays[gone] = False
        target = stays.cumsum(0) - 1
        target[gone] = target.index_select(0, receiving.index_select(0, nearest.index_select(0, merged)))
        return Plan(stays.nonzero()[:, 0], _offsets(live.count(stays)), target)


def most_similar(a: Tensor, b: Tensor, n_a: Tensor, n_b: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of `a` the largest product with the rows of `b` of the same sequence, and the row of `b`.

    Args:
        a: [Ta, D], n_a[i] rows of sequence i.
        b: [Tb, D], n_b[i] rows of it: n_a[i] or one more.
        n_a, n_b: [B] int64.

    Returns:
        The products [Ta] fp32 and the rows [Ta] int64 of `b`; of equal products the first.
    """
    if a.device.type != "cpu":
        return most_similar_padded(a, b, n_a, n_b)
    # One product per sequence: n^2 / 4 of them are little work, and each sequence's own whatever its batch.
    similarity = a.new_empty(len(a))
    nearest = torch.empty(len(a), dtype=torch.int64)
    ends_a, ends_b = _offsets(n_a).tolist(), _offsets(n_b).tolist()
    for (a0, a1), (b0, b1) in zip(pairwise(ends_a), pairwise(ends_b)):
        if a0 < a1:
            best, row = (a[a0:a1] @ b[b0:b1].T).max(1)
            similarity[a0:a1] = best
            nearest[a0:a1] = row + b0
    return similarity, nearest


def most_similar_padded(a: Tensor, b: Tensor, n_a: Tensor, n_b: Tensor) -> tuple[Tensor, Tensor]:
    """`most_similar` in one product of padded sequences, where launches cost more than the padding."""
    begin_b = _offsets(n_b)[:-1]
    places = [torch.arange(int(n.max()) if len(n) else 0, device=n.device) < n[:, None] for n in (n_a, n_b)]
    padded = []
    for rows, place in zip((a, b), places):
        wide = rows.new_zeros(*place.shape, rows.shape[1])
        wide[place] = rows
        padded.append(wide)
    products = torch.bmm(padded[0], padded[1].transpose(1, 2)).masked_fill(~places[1][:, None], -float("inf"))
    if not products.shape[2]:
        return a.new_empty(0), begin_b.new_empty(0)
    best, row = products.max(2)
    return best[places[0]], (row + begin_b[:, None])[places[0]]


def _offsets(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), [1, 0])
