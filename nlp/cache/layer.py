"""One layer of the cache: takes in new tokens, attends to what is kept, evicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from common_kernels import ragged_topk
from nlp.cache.policies import Budget, HeavyHitters, Policy, RandomTokens, Recent, SnapKV
from nlp.cache.segments import Segments, chance, smooth

REFUSED_CROP = (
    "PrunedCache cannot be cropped: tokens that were evicted are gone. Use transformers' DynamicCache for assisted "
    "decoding and whatever else crops a cache"
)


class PrunedLayer(CacheLayerMixin):
    """What PrunedCache holds of one layer.

    `update` hands the new keys on, marked with this layer; the registered attention function finds the mark and calls
    `attend`, which needs the queries and the padding as well.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False
    keys: Tensor | None
    values: Tensor | None

    def __init__(self, index: int, policy: Policy, budget: Budget, heads: str, decoding: bool) -> None:
        super().__init__()
        self.index, self.policy, self.budget, self.heads, self.decoding = index, policy, budget, heads, decoding
        self._empty()

    def _empty(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.segments: Segments | None = None
        self.columns = 0  # tokens fed, pads included: what masks and positions are reckoned in
        self.seen: list[int] = []  # tokens of each row, pads not counted
        self.evicted = False
        self.n_parts = 0  # segments of a row
        self.n_heads = 0
        self._waiting = False

    # What transformers asks for.

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, self.n_heads, _, _ = key_states.shape
        self.n_parts = 1 if self.heads == "shared" else self.n_heads
        self.segments = Segments.empty(batch * self.n_parts, key_states, self.n_heads // self.n_parts)
        self.seen = [0] * batch
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new keys and values [B, Hkv, S, D] as they came, marked for the attention function."""
        if self._waiting:
            raise RuntimeError(
                "PrunedCache's attention did not run: the model's attention implementation was changed, or the cache "
                "was made for another model. Make a PrunedCache for this model, and reset() this one"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != len(self.seen) or key_states.shape[1] != self.n_heads:
            raise ValueError(
                f"keys must be [{len(self.seen)}, {self.n_heads}, S, D] as before in this PrunedCache, got "
                f"{list(key_states.shape)}: reset() it, or make one for each batch"
            )
        self._waiting = True
        key_states = key_states.view(key_states.shape)  # a tensor of its own, to be marked
        key_states.trisparse_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def reset(self) -> None:
        self._empty()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select_rows(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select_rows([row for row in range(len(self.seen)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        rows = torch.arange(len(self.seen))[indices.cpu()]
        self.select_rows(rows.tolist())

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError(REFUSED_CROP)

    def offload(self) -> None:
        raise ValueError("PrunedCache stays on the model's device: offloading is not supported")

    prefetch = offload

    # What we do.

    def select_rows(self, rows: list[int]) -> None:
        """Keep these rows, which may repeat, in this order."""
        if self.segments is not None:
            self._store(self.segments.take_segments([r * self.n_parts + p for r in rows for p in range(self.n_parts)]))
            self.seen = [self.seen[r] for r in rows]

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, real: Tensor | None, scale: float, window: int | None
    ) -> Tensor:
        """Add the new tokens, attend to all that is kept, evict.

        Args:
            q: [B, H, S, D]; keys, values: [B, Hkv, S, D].
            real: [B, S] bool, False at padding; None where there is none.
            window: the model's own sliding window.

        Returns:
            [B, S, H, D], zeros at padding.
        """
        self._waiting = False
        assert self.segments is not None  # set by update
        batch, _, length, size = q.shape
        if real is not None and bool(real.all()):
            real = None
        fresh = [length] * batch if real is None else real.sum(1).tolist()
        counts = [n for n in fresh for _ in range(self.n_parts)]
        # [B, parts, S, heads of a part, D]
        queries, new_keys, new_values = (x.unflatten(1, (self.n_parts, -1)).transpose(2, 3) for x in (q, keys, values))
        ranks = torch.arange(length, device=q.device).expand(batch, -1) if real is None else real.cumsum(1) - 1
        positions = ranks + torch.tensor(self.seen, device=q.device)[:, None]
        positions = positions[:, None].expand(-1, self.n_parts, -1)
        if real is None:
            where = None
            flat = [x.flatten(0, 2) for x in (queries, new_keys, new_values, positions)]
        else:
            where = real[:, None].expand(-1, self.n_parts, -1)
            flat = [x[where] for x in (queries, new_keys, new_values, positions)]
        # Copies where they are parts of a larger tensor, which would stay in memory.
        new = Segments(
            flat[1].contiguous(),
            flat[2].contiguous(),
            flat[3],
            flat[3].new_zeros(len(flat[3]), dtype=torch.float32),
            counts,
        )
        self.columns += length
        self.seen = [a + b for a, b in zip(self.seen, fresh)]
        old = self.segments
        window = self._window(window, length)
        if window is not None and length == 1 and any(old.counts):
            old = self._drop_before(old, [n - window for n in self.seen])
            window = None
        segments = old.append(new)
        out, received = segments.attend(flat[0], counts, scale, window, isinstance(self.policy, HeavyHitters))
        if received is not None:
            segments.scores += received
        if length > 1 and isinstance(self.policy, SnapKV):
            segments.scores = self._votes(segments, flat[0], counts, scale, window)
        if window is not None:  # the next token's does not reach so far
            segments = self._drop_before(segments, [n + 1 - window for n in self.seen])
        if length > 1 or self.decoding:
            segments = self._evict(segments)
        self._store(segments)
        if where is not None:
            padded = out.new_zeros(*where.shape, *out.shape[1:])
            padded[where] = out
            out = padded
        # [B, parts, S, H / parts, D] to [B, S, H, D]
        return out.view(batch, self.n_parts, length, -1, size).transpose(1, 2).flatten(2, 3)

    def kept(self) -> list[list[int]]:
        """[rows][heads]: tokens in the cache."""
        if self.segments is None:
            return []
        counts, repeat = self.segments.counts, self.n_heads // self.n_parts
        rows = [counts[i : i + self.n_parts] for i in range(0, len(counts), self.n_parts)]
        return [[n for n in row for _ in range(repeat)] for row in rows]

    def kept_positions(self, row: int, head: int) -> Tensor:
        """[n] int64, ascending: which tokens of a row a head keeps, pads not counted."""
        if self.segments is None or not 0 <= row < len(self.seen) or not 0 <= head < self.n_heads:
            raise ValueError(
                f"row and head must lie in [0, {len(self.seen)}) and [0, {self.n_heads}), got {row} and {head}"
            )
        segment = row * self.n_parts + head // (self.n_heads // self.n_parts)
        begin = sum(self.segments.counts[:segment])
        return self.segments.positions[begin : begin + self.segments.counts[segment]].clone()

    def _store(self, segments: Segments) -> None:
        self.segments, self.keys, self.values = segments, segments.keys, segments.values

    def _window(self, window: int | None, length: int) -> int | None:
        """The model's sliding window where it matters."""
        if window is None or max(self.seen, default=0) <= window:
            return None
        if self.evicted and length > 1:
            raise ValueError(
                f"after an eviction PrunedCache takes one token at a time past the model's sliding window of {window} "
                f"tokens, got {length}: feed the prompt at once"
            )
        return window

    def _drop_before(self, segments: Segments, firsts: list[int]) -> Segments:
        """Without the tokens of each row before a position: no later query sees them."""
        per_segment = torch.tensor(
            [first for first in firsts for _ in range(self.n_parts)], device=segments.keys.device
        )
        owners = segments.owners()
        stays = segments.positions >= per_segment[owners]
        counts = torch.zeros_like(per_segment).index_add_(0, owners, stays.long()).tolist()
        return segments.take(stays.nonzero()[:, 0], counts)

    def _votes(self, segments: Segments, q: Tensor, counts: list[int], scale: float, window: int | None) -> Tensor:
        """[T] fp32: SnapKV's scores; the voters' own do not matter, they stay."""
        assert isinstance(self.policy, SnapKV)
        voters = [min(n, self.policy.window) for n in counts]
        ends = torch.tensor(counts, device=q.device).cumsum(0)
        owners = torch.arange(len(counts), device=q.device).repeat_interleave(torch.tensor(counts, device=q.device))
        last = torch.arange(len(q), device=q.device) >= (ends - torch.tensor(voters, device=q.device))[owners]
        sums = segments.column_sums(q[last], voters, scale, window)
        # The voters' own columns are no neighbours of the tokens before them.
        seen = torch.tensor(self.seen, device=q.device).repeat_interleave(self.n_parts)[segments.owners()]
        voting = torch.tensor(voters, device=q.device)[segments.owners()]
        sums.masked_fill_(segments.positions >= seen - voting, 0.0)
        return smooth(sums, segments.counts, self.policy.kernel)

    def _evict(self, segments: Segments) -> Segments:
        """The segments, reduced to as many tokens as the budget allows."""
        budgets = [self.budget.of(n) for n in self.seen]
        pooled = self.heads == "pooled"
        sizes = segments.counts
        if pooled:  # one choice for all heads of a row
            sizes = [sum(sizes[i : i + self.n_parts]) for i in range(0, len(sizes), self.n_parts)]
        limits = [n * self.n_parts if pooled else n for n in budgets for _ in range(1 if pooled else self.n_parts)]
        if all(n <= limit for n, limit in zip(sizes, limits)):
            return segments
        owners = segments.owners()
        scores = self._protected(segments, owners, self._scores(segments, owners))
        keep = [min(a, b) for a, b in zip(sizes, limits)]
        device = scores.device
        offsets = torch.tensor([0, *sizes], device=device).cumsum(0)
        index, _ = ragged_topk(scores, offsets, torch.tensor(keep, device=device), sum(keep))
        self.evicted = True
        if not pooled:
            return segments.take(index, keep)
        left = torch.zeros(len(segments.counts), dtype=torch.int64, device=device)
        return segments.take(index, left.index_add_(0, owners[index], torch.ones_like(index)).tolist())

    def _scores(self, segments: Segments, owners: Tensor) -> Tensor:
        if isinstance(self.policy, Recent):
            return segments.positions.double()
        if isinstance(self.policy, RandomTokens):
            salt = owners % self.n_parts + self.index * self.n_heads
            return chance(segments.positions, salt, self.policy.seed)
        return segments.scores

    def _protected(self, segments: Segments, owners: Tensor, scores: Tensor) -> Tensor:
        """The scores, infinite for sinks and recent tokens."""
        seen = torch.tensor(self.seen, device=owners.device)[owners // self.n_parts]
        stays = (segments.positions < self.budget.sinks) | (segments.positions >= seen - self.budget.recent)
        return scores.masked_fill(stays, float("inf"))
