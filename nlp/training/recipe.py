"""The settings of a training run of the small language model."""

from __future__ import annotations

from dataclasses import dataclass

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"  # tokens 0, 1 and 2


@dataclass(frozen=True)
class Recipe:
    """A training run; the same recipe gives the same network on the same machine, Python and versions.

    Byte-level BPE of the training texts, a Llama with grouped queries, windows of `context` tokens, each of which opens
    with the token "begin". AdamW, linear warm-up, linear decay to zero, products in `precision` ("bf16" or "fp32").

    One window in `repeats_every` is its own beginning over and over: minutes are too short to learn from text alone to
    look far back, and a network that does not has nothing to lose when its cache forgets. `start.py` helps, too.
    """

    seed: int = 0
    vocabulary: int = 2048
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    key_heads: int = 2
    feed_forward: int = 512
    context: int = 512
    steps: int = 650
    batch: int = 8
    learning_rate: float = 1.5e-3
    warm_up: int = 100
    weight_decay: float = 0.1
    repeats_every: int = 3
    precision: str = "bf16"

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be bf16 or fp32, got {self.precision!r}")
        for name in (
            "vocabulary",
            "layers",
            "hidden",
            "heads",
            "key_heads",
            "feed_forward",
            "steps",
            "batch",
            "repeats_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context < 2:
            raise ValueError(f"context must be at least 2, got {self.context}")
        if self.vocabulary < 300:
            raise ValueError(f"vocabulary must be at least 300 (all bytes and some words), got {self.vocabulary}")
        if self.hidden % (2 * self.heads) or self.heads % self.key_heads:
            raise ValueError(
                f"2 * heads must divide hidden and key_heads must divide heads, got {self.hidden}, {self.heads} and "
                f"{self.key_heads}"
            )
        if self.heads == 1:
            raise ValueError("heads must be at least 2, got 1")
