"""The interface of pruning policies: the tokens alive between two layers, and the plan for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

PROTECTED = ("cls", "sep", "sinks", "recent")


@dataclass(frozen=True)
class Live:
    """The tokens alive before a layer, T of them in B sequences, one behind the other without padding.

    Attributes:
        layer: number of the layer that comes next, from 0; never 0 itself, as nothing was measured before it.
        n_layers: layers of the network.
        offsets: [B + 1] int64, where each sequence begins.
        original: [B] int64, the length of each sequence before the first layer.
        hidden: [T, C] what the next layer will read.
        importance: [T] fp32, attention received in the previous layer summed over heads and queries, each row of
            attention weighing one; None where the policy did not ask for it.
        accumulated: [T] fp32, the same summed over all layers so far; None likewise.
        keys: [T, D] the previous layer's keys, mean over heads; None where the policy did not ask for them.
        sizes: [T] fp32, original tokens that each stands for; None while nothing was merged.
        protected: [T] bool, tokens that must stay.
        column: [T] int64, column of the padded input.
        causal: the network is causal.
    """

    layer: int
    n_layers: int
    offsets: Tensor
    original: Tensor
    hidden: Tensor
    importance: Tensor | None
    accumulated: Tensor | None
    keys: Tensor | None
    sizes: Tensor | None
    protected: Tensor
    column: Tensor
    causal: bool

    @property
    def lengths(self) -> Tensor:
        """[B] int64, tokens alive in each sequence."""
        return self.offsets.diff()

    def sequence(self) -> Tensor:
        """[T] int64, the sequence of each token."""
        lengths = self.lengths
        which = torch.arange(len(lengths), device=lengths.device)
        return torch.repeat_interleave(which, lengths, output_size=len(self.hidden))

    def place(self) -> Tensor:
        """[T] int64, the place of each token among the living ones of its sequence."""
        begin = self.offsets[:-1].index_select(0, self.sequence())
        return torch.arange(len(self.hidden), device=begin.device) - begin

    def count(self, which: Tensor) -> Tensor:
        """[B] int64: how many tokens of each sequence are True in [T] bool."""
        sums = torch.nn.functional.pad(which.cumsum(0), [1, 0])
        return sums.index_select(0, self.offsets).diff()


@dataclass(frozen=True)
class Plan:
    """Which tokens go on.

    Attributes:
        index: [M] int64 ascending: the rows that stay.
        offsets: [B + 1] int64: where each sequence begins among them.
        target: [T] int64 in 0 .. M - 1: the row among those that stay into which each row is merged, weighted by size;
            None where the others are dropped.
    """

    index: Tensor
    offsets: Tensor
    target: Tensor | None = None


class Policy(ABC):
    """Chooses the tokens that go on to the next layer. Immutable: one policy may serve several networks and threads."""

    #: Sequences that began with fewer tokens are left alone.
    min_tokens: int
    #: Who stays in any case: "cls" the first token, "sep" the last, "sinks:N" the first N, "recent:N" the last N. None
    #: for "cls" in encoders, and for "sinks:4" and "recent:16" in causal networks.
    protect: tuple[str, ...] | None

    def importance(self, layer: int, n_layers: int) -> bool | int:
        """Whether layer number `layer` (from 0) must measure the attention its tokens receive, and how exactly.

        False, True (exact), or the number of queries to estimate it from.
        """
        return False

    def wants_keys(self, layer: int, n_layers: int) -> bool:
        """Whether the keys of layer number `layer` (from 0) are needed."""
        return False

    def check(self, n_layers: int, causal: bool) -> None:  # noqa: B027
        """Whether the policy can serve such a network.

        Raises:
            ValueError: it cannot; the message says why.
        """

    @abstractmethod
    def plan(self, live: Live) -> Plan | None:
        """The tokens that go on to layer `live.layer`; None for all of them."""


def check_common(policy: Policy) -> None:
    """The fields that all policies share; a `protect` given as a list or one name becomes a tuple.

    Raises:
        ValueError: the fields' names, what was expected, what came.
    """
    least = policy.min_tokens
    if type(least) is not int or least < 0:
        raise ValueError(f"min_tokens must be a whole number of at least 0, got {least!r}")
    names = policy.protect
    if names is None:
        return
    if not isinstance(names, (str, list, tuple, set, frozenset)):
        raise ValueError(f"protect must be names such as ('cls', 'recent:16'), or None, got {names!r}")
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        kind, colon, count = name.partition(":") if isinstance(name, str) else (None, "", "")
        counted = kind in ("sinks", "recent")
        if kind not in PROTECTED or counted != bool(colon) or (counted and not (count.isdecimal() and int(count))):
            raise ValueError(f"protect must name cls, sep, sinks:N or recent:N, got {name!r}")
    object.__setattr__(policy, "protect", names)
