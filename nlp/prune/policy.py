"""What a pruning policy sees between two layers, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Live:
    """The tokens alive before a layer, T of them in B sequences, one behind the other without padding.

    Attributes:
        layer: number of the layer that comes next, from 1.
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

    #: Sequences with fewer live tokens are left alone.
    min_tokens: int
    #: "cls" protects the first token, "sep" the last one; "sinks:N" the first N, "recent:N" the last N.
    protect: tuple[str, ...] | None

    def importance(self, layer: int, n_layers: int) -> bool | int:
        """Whether layer number `layer` (from 0) must measure the attention its tokens receive, and how exactly.

        False, True (exact), or the number of queries to estimate it from.
        """
        return False

    def wants_keys(self, layer: int, n_layers: int) -> bool:
        """Whether the keys of layer number `layer` (from 0) are needed."""
        return False

    @abstractmethod
    def plan(self, live: Live) -> Plan | None:
        """What goes on to layer `live.layer`; None for everything."""
