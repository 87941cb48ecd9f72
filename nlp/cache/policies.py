"""What decides which tokens of a key-value cache stay, and how many."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SnapKV:
    """The vote of the prompt's last `window` tokens: their mean attention to each earlier token, smoothed over
    `kernel` neighbours. The voters themselves stay. Votes are cast whenever several tokens are fed at once.

    Source: SnapKV (Li et al., 2024).
    """

    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        _at_least("window", self.window, 1)
        _at_least("kernel", self.kernel, 1)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")


@dataclass(frozen=True)
class HeavyHitters:
    """The attention that each token has received from all tokens so far, exactly, in the prompt and while decoding.

    Source: SpAtten's accumulated importance (Wang et al., 2021), H2O (Zhang et al., 2023).
    """


@dataclass(frozen=True)
class Recent:
    """The latest tokens, beside the sinks: a sliding window.

    Source: StreamingLLM (Xiao et al., 2023); here every token keeps its own position.
    """


@dataclass(frozen=True)
class RandomTokens:
    """Tokens drawn by chance, a control: the same ones for the same seed, layer, head and position."""

    seed: int = 0


Policy = SnapKV | HeavyHitters | Recent | RandomTokens
POLICIES = (SnapKV, HeavyHitters, Recent, RandomTokens)
HEADS = ("own", "pooled", "shared")


@dataclass(frozen=True)
class Budget:
    """How many tokens of a row stay in each layer and head, and which ones in any case.

    Attributes:
        keep: share of the row's tokens, rounded up; None where `tokens` is given.
        tokens: number of tokens; None where `keep` is given.
        sinks: the first tokens of a row, which stay.
        recent: its latest tokens, which stay.
    """

    keep: float | None
    tokens: int | None
    sinks: int
    recent: int

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.tokens is None):
            raise ValueError(f"either keep or tokens must be given, got keep={self.keep} and tokens={self.tokens}")
        _at_least("sinks", self.sinks, 0)
        _at_least("recent", self.recent, 0)
        if self.keep is not None:
            number = isinstance(self.keep, (int, float)) and not isinstance(self.keep, bool)
            if not number or not 0 < self.keep <= 1:
                raise ValueError(f"keep must lie in (0, 1], got {self.keep!r}")
        if self.tokens is not None:
            _at_least("tokens", self.tokens, 1)
            if self.tokens < self.sinks + self.recent:
                raise ValueError(
                    f"tokens must be at least sinks + recent, {self.sinks} + {self.recent}, which stay in any case, "
                    f"got {self.tokens}"
                )

    def of(self, seen: int) -> int:
        """Tokens that stay in each head of a row that has seen so many."""
        if self.tokens is not None:
            return min(seen, self.tokens)
        assert self.keep is not None
        # Not to be one more where the product is a whole number but for its rounding.
        wanted = math.ceil(self.keep * seen - 1e-9)
        return min(seen, max(wanted, self.sinks + self.recent, 1))


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
