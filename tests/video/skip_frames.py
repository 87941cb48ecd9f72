"""Made-up frames and readers for the tests of skipping: what a reader gives, without a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from video.preprocess import Preprocess

PREPARE = Preprocess(size=16, resize=16)


@dataclass
class FakeFrame:
    """A frame of one colour; remembers whether it was converted."""

    index: int
    level: int = 0
    is_keyframe: bool = False
    packet_size: int = 100
    size: tuple[int, int] = (32, 48)
    motion_vectors: Any = None
    conversions: int = 0

    @property
    def time(self) -> float:
        return self.index / 25

    @property
    def luma(self) -> Tensor:
        return torch.full(self.size, self.level, dtype=torch.uint8)

    def rgb(self) -> Tensor:
        self.conversions += 1
        return torch.full((*self.size, 3), self.level, dtype=torch.uint8)


class Packets(NamedTuple):
    size: Tensor
    is_keyframe: Tensor
    time: Tensor


@dataclass
class FakeReader:
    """A file of these frames; notes in `decoded` what is decoded."""

    content: Sequence[FakeFrame]
    unreferenced: frozenset[int] = frozenset()
    decoded: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.content)

    @property
    def keyframes(self) -> list[int]:
        return [frame.index for frame in self.content if frame.is_keyframe]

    @property
    def packets(self) -> Packets:
        return Packets(
            torch.tensor([frame.packet_size for frame in self.content], dtype=torch.int64),
            torch.tensor([frame.is_keyframe for frame in self.content], dtype=torch.bool),
            torch.tensor([frame.time for frame in self.content], dtype=torch.float64),
        )

    def frames(self, motion_vectors: bool = False, skip: str = "none") -> Iterator[FakeFrame]:
        for frame in self.content:
            if skip == "none" or frame.index not in self.unreferenced:
                self.decoded.append(frame.index)
                yield frame

    def decode(self, indices: Iterable[int]) -> Iterator[FakeFrame]:
        for index in indices:
            self.decoded.append(index)
            yield self.content[index]


def video(levels: Sequence[int], every: int = 1000, **others: Any) -> FakeReader:
    """One frame for each level of brightness, a key frame every so many."""
    return FakeReader([FakeFrame(i, level, i % every == 0, **others) for i, level in enumerate(levels)])


class LevelNetwork(nn.Module):
    """Logits [B, 4] that prefer the quarter of 0 to 255 in which a frame's mean level lies; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        red = x[:, 0].mean((1, 2)) * 0.229 + 0.485
        centres = torch.tensor([0.125, 0.375, 0.625, 0.875])
        return -20 * (red[:, None] - centres).abs()


class SumNetwork:
    """A network with memory: its answer is the sum of all levels since the start."""

    def step(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        total = ((x[:, :1].mean((2, 3)) * 0.229 + 0.485) * 255).round() + (0 if state is None else state)
        return total.repeat(1, 2), total


def vectors(dx: float, dy: float = 0.0, blocks: int = 6) -> np.ndarray:
    """Motion vectors of equal 16 x 16 blocks in FFmpeg's fields, quarter pixels."""
    names = ["source", "w", "h", "motion_x", "motion_y", "motion_scale"]
    out = np.zeros(blocks, dtype=[(name, np.int32) for name in names])
    out["source"], out["w"], out["h"], out["motion_scale"] = -1, 16, 16, 4
    out["motion_x"], out["motion_y"] = round(dx * 4), round(dy * 4)
    return out
