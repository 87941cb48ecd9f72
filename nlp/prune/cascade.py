"""Keep the tokens that received most attention; and the controls that must do worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from common_kernels import ragged_topk
from nlp.prune.policy import Live, Plan, Policy, check_common
from nlp.prune.schedule import Layers, check_schedule, counts, last_drop, shares


@dataclass(frozen=True)
class Scheduled(Policy):
    """A policy that keeps a number of tokens known beforehand: ceil(share * original length) in each layer.

    Args:
        keep: the share of its tokens that a sequence ends with, in (0, 1]: each drop keeps the same factor of what
            there is. Or the share of the original length that each layer reads, one per layer, never rising; the first
            is 1. A sequence's mean share is then what its layers cost.
        layers: numbers of the layers, from 1, after which tokens leave; "auto" for a few early ones, see `drops`.
        protect: see `Policy`; protected tokens count, and stay whatever `keep` says.
        min_tokens: sequences that began with fewer tokens are left alone.

    Raises:
        ValueError: an argument outside of its range.
    """

    keep: float | Sequence[float] = 0.5
    layers: Layers = "auto"
    _: KW_ONLY
    protect: tuple[str, ...] | None = None
    min_tokens: int = 64

    def __post_init__(self) -> None:
        keep, layers = check_schedule(self.keep, self.layers)
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "layers", layers)
        check_common(self)

    def shares(self, n_layers: int) -> tuple[float, ...]:
        """The share of the original tokens that each of so many layers reads.

        Raises:
            ValueError: `keep` or `layers` do not fit so many layers.
        """
        keep: Any = self.keep
        layers: Any = self.drops(n_layers) if self.layers == "auto" else self.layers
        return shares(keep, layers, n_layers)

    def drops(self, n_layers: int) -> tuple[int, ...]:
        """The layers that "auto" stands for: after a sixth and a half of the network.

        With all-MiniLM-L6-v2 on newsgroups a few early drops were nearer to the dense embeddings than one after every
        layer, at the same number of tokens computed and in less time.
        """
        return tuple(sorted({one for one in (max(1, round(n_layers / 6)), n_layers // 2) if 1 <= one < n_layers}))

    def check(self, n_layers: int, causal: bool) -> None:
        self.shares(n_layers)

    def counts(self, live: Live) -> Tensor | None:
        """[B] int64: tokens of each sequence that go on; None for all."""
        each = self.shares(live.n_layers)
        if each[live.layer] >= each[live.layer - 1]:
            return None
        return counts(live, each[live.layer], self.min_tokens)


@dataclass(frozen=True)
class Cascade(Scheduled):
    """Keeps the tokens with the highest attention received; a token that left is gone for all later layers.

    Args:
        keep, layers, protect, min_tokens: see `Scheduled`.
        score: "exact" sums the attention of all queries, "strided:N" estimates it from N of each sequence, which is
            faster only where the CPU lacks AVX-512.
        accumulate: rank by the attention of all layers so far (SpAtten), and not by that of the last one alone, which
            was nearer to the dense embeddings.

    Raises:
        ValueError: an argument outside of its range.

    Source: SpAtten (Wang et al., 2021).

    Example:
        >>> import nlp
        >>> nlp.Cascade(0.25, layers=[2, 4]).shares(n_layers=6)  # of its tokens, what each layer reads
        (1.0, 1.0, 0.5, 0.5, 0.25, 0.25)
    """

    _: KW_ONLY
    score: str = "exact"
    accumulate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        queries(self.score)
        if type(self.accumulate) is not bool:
            raise ValueError(f"accumulate must be True or False, got {self.accumulate!r}")

    def importance(self, layer: int, n_layers: int) -> bool | int:
        each = self.shares(n_layers)
        wanted = layer < last_drop(each) if self.accumulate else layer + 1 < n_layers and each[layer + 1] < each[layer]
        return queries(self.score) if wanted else False

    def plan(self, live: Live) -> Plan | None:
        score = live.accumulated if self.accumulate else live.importance
        keep = self.counts(live)
        if keep is None or score is None:
            return None
        return best(score, keep, live)


@dataclass(frozen=True)
class Random(Scheduled):
    """Control: keeps tokens drawn at random, the same ones of all sequences of one length.

    Args:
        keep, layers, protect, min_tokens: see `Scheduled`.
        seed: of the draw.

    Raises:
        ValueError: an argument outside of its range.
    """

    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must be a whole number of 31 bits, got {self.seed!r}")

    def plan(self, live: Live) -> Plan | None:
        keep = self.counts(live)
        if keep is None:
            return None
        length = live.original.index_select(0, live.sequence())
        drawn = torch.full_like(length, self.seed)
        # Mixed and not drawn from a generator: what is drawn for a sequence must not depend on its batch.
        for part in (length, live.place(), torch.full_like(length, live.layer)):
            drawn = _mixed(drawn * 1_000_003 + part)
        return best((drawn & 0xFFFFFFFF).double(), keep, live)


@dataclass(frozen=True)
class First(Scheduled):
    """Control: keeps the first tokens of each sequence.

    Args:
        keep, layers, protect, min_tokens: see `Scheduled`.

    Raises:
        ValueError: an argument outside of its range.
    """

    def plan(self, live: Live) -> Plan | None:
        keep = self.counts(live)
        return None if keep is None else best(-live.place().double(), keep, live)


def best(score: Tensor, keep: Tensor, live: Live) -> Plan | None:
    """The protected tokens and those with the highest scores [T], `keep` [B] of each sequence; None for all."""
    if score.device.type == "cpu" and torch.equal(keep, live.lengths):
        return None
    score = score.masked_fill(live.protected, float("inf"))
    return Plan(*ragged_topk(score, live.offsets, keep))


def queries(score: object) -> bool | int:
    """What attention must measure for a score: True for all queries, or a number of them.

    Raises:
        ValueError: no score of that name.
    """
    if score == "exact":
        return True
    kind, _, count = score.partition(":") if isinstance(score, str) else ("", "", "")
    if kind != "strided" or not count.isdecimal() or not int(count):
        raise ValueError(f"score must be 'exact' or 'strided:N', the number of queries that are asked, got {score!r}")
    return int(count)


def _mixed(x: Tensor) -> Tensor:
    """[T] int64 in which every bit depends on many of x: splitmix's finaliser (Steele et al., 2014), wrapping."""
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)
