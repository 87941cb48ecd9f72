"""One forward pass over rows without padding: who is in it, and how its results go back into the padded batch."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common_kernels import pack, unpack
from nlp.prune.removal import Removal


@dataclass
class Batch:
    """One forward pass in flight.

    Attributes:
        shape: (B, S) of the padded input.
        index: [T] int64, place b * S + s of each token in it.
        offsets: [B + 1] int64, where each sequence begins among the live tokens.
        causal: a token sees no later one.
        parts: [P + 1] int64, where each of several sequences in a row begins, where positions begin anew within rows;
            None where a row is one sequence.
        whole: there is no padding: the rows are the batch, flattened.
        empty: there is no token at all; a placeholder runs through the network, which takes at least one.
        removal: what pruning knows and did; None without a policy.
        cache: the key-value cache that the pass fills with packed rows, or None.
        wanted_cache: the one that the caller gets, filled as a padded pass fills it.
        as_tuple: the caller wants a tuple and no output class.
    """

    shape: tuple[int, int]
    index: Tensor
    offsets: Tensor
    causal: bool = False
    parts: Tensor | None = None
    whole: bool = False
    empty: bool = False
    removal: Removal | None = None
    cache: Any = None
    wanted_cache: Any = None
    as_tuple: bool = False

    def live(self) -> Tensor:
        """[B + 1] int64: where each sequence begins among the rows that the network has now."""
        if self.empty:
            return torch.tensor([0, 1], device=self.offsets.device)
        if self.removal is not None:
            return self.removal.offsets
        return self.offsets if self.parts is None else self.parts

    def pack(self, x: Tensor) -> Tensor:
        """Rows [1, T, ...] of a padded input [B, S, ...]."""
        if self.empty:
            return x.new_zeros(1, 1, *x.shape[2:])
        rows = x.flatten(0, 1)
        return (rows if self.whole else rows.index_select(0, self.index))[None]

    def padded(self, rows: Tensor, origin: Tensor | None = None) -> Tensor:
        """The padded batch [B, S, ...] of rows [M, ...], zeros elsewhere.

        Args:
            origin: [M] int64, which of the T tokens each row is; None for all of them in order.
        """
        if self.empty:
            return rows[:0].new_zeros(*self.shape, *rows.shape[1:])
        if origin is None and self.whole:
            return rows.view(*self.shape, *rows.shape[1:])
        return unpack(rows, self.index if origin is None else self.index.index_select(0, origin), self.shape)


def batch_of(shape: tuple[int, int], mask: Tensor | None, device: torch.device) -> Batch:
    """The batch of all tokens that a mask [B, S] bool keeps; without a mask of all."""
    b, s = shape
    if mask is None or bool(mask.all()):
        index = torch.arange(b * s, device=device)
        # Not of a step: it may be 0.
        offsets = torch.arange(b + 1, device=device) * s
        return Batch(shape, index, offsets, whole=True, empty=not b * s)
    _, index, offsets = pack(mask, mask)
    return Batch(shape, index, offsets, empty=not len(index))


def restarts(positions: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """Where sequences begin among the rows of an unpadded batch, [P + 1] int64; None where each row is one.

    Args:
        positions: [B, S] or [1, S]; one that does not follow the one before it begins another sequence.
    """
    b, s = shape
    if s < 2 or positions.ndim != 2 or bool((positions.diff(dim=1) == 1).all()):
        return None
    begins = torch.ones(b, s, dtype=torch.bool, device=positions.device)
    begins[:, 1:] = positions.diff(dim=1) != 1
    first = begins.flatten().nonzero()[:, 0]
    return torch.cat([first, first.new_tensor([b * s])])


@dataclass(frozen=True)
class Pass:
    """A forward pass of a hooked network: packed, or padded as usual where `batch` is None.

    Attributes:
        owner: whose hooks began it.
        mask: [B, S] bool of a padded pass over whole sequences, else None.
        attentions: a padded pass must give attention matrices.
    """

    owner: object
    batch: Batch | None
    mask: Tensor | None = None
    attentions: bool = False


# Of this thread or task, innermost.
RUNNING: ContextVar[tuple[Pass, ...]] = ContextVar("trisparse_nlp_passes", default=())


def in_flight() -> Batch | None:
    """The packed forward pass that the caller is part of; None where rows are padded as usual."""
    if torch.compiler.is_compiling():
        return None
    running = RUNNING.get()
    return running[-1].batch if running else None


def wants_attentions() -> bool:
    """Whether the caller is part of a padded pass that must give attention matrices."""
    running = () if torch.compiler.is_compiling() else RUNNING.get()
    return bool(running) and running[-1].attentions


def new_cache(batch: Batch, given: Any, config: Any) -> Any:
    """The cache that a packed pass fills in place of one that was given, or that the network would make."""
    from transformers import DynamicCache

    batch.wanted_cache = DynamicCache(config=config) if given is None else given
    # That one may keep but a window of what it is given, which packed rows need whole.
    batch.cache = DynamicCache()
    return batch.cache


def is_fresh(cache: Any) -> bool:
    """Whether a cache is empty and of the kind that a packed pass fills."""
    from transformers import DynamicCache

    return type(cache) is DynamicCache and cache.get_seq_length() == 0


def fill_cache(batch: Batch) -> Any:
    """The caller's cache, filled with keys and values [B, H, S, D] as by a padded pass; zeros at padding."""
    for i, layer in enumerate(batch.cache.layers):
        keys, values = (batch.padded(each[0].transpose(0, 1)).transpose(1, 2) for each in (layer.keys, layer.values))
        batch.wanted_cache.update(keys, values, i)
    return batch.wanted_cache


def padded_state(batch: Batch, i: int, state: Tensor) -> Tensor:
    """Hidden state number i, [B, S, C]: the input of layer i, or of the last one its output."""
    if state.shape[:2] == batch.shape and (i > 0 or batch.shape[0] != 1):
        return state
    if batch.removal is None or batch.empty or state.shape[1] == len(batch.index):
        return batch.padded(state[0])
    history = batch.removal.history
    origins = history[max(i - 1, 0) : i + 1] or history[-1:]
    fitting = [o for o in origins if (len(batch.index) if o is None else len(o)) == state.shape[1]]
    return batch.padded(state[0], fitting[0])


Counts = tuple[Tensor, Tensor]


def counts_of(batch: Batch, n_layers: int) -> Counts:
    """Tokens alive in each layer and at the end, [n_layers + 1, B]; columns of those at the end, [B, K], -1 filled."""
    if batch.removal is None:
        kept = batch.offsets.diff().expand(n_layers + 1, -1)
        if batch.whole:
            return kept, torch.arange(batch.shape[1] if batch.shape[0] else 0, device=kept.device).repeat(
                batch.shape[0], 1
            )
        column = batch.index % max(batch.shape[1], 1)
    else:
        kept, column = batch.removal.kept(), batch.removal.columns()
    lengths = kept[-1]
    longest = int(lengths.max()) if len(lengths) else 0
    place = torch.arange(longest, device=column.device)
    token_index = column.new_full((len(lengths), longest), -1)
    token_index[place < lengths[:, None]] = column
    return kept, token_index


def with_counts(output: Any, counts: Counts | None) -> Any:
    """The output with attributes `kept` and `token_index`, where it is a class that has attributes."""
    if counts is not None and hasattr(output, "to_tuple"):
        object.__setattr__(output, "kept", counts[0])
        object.__setattr__(output, "token_index", counts[1])
    return output
