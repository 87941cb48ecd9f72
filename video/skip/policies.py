"""The policies that need no training, from the cheapest signal to the dearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from video.skip.policy import (
    COMPUTE,
    EXIT,
    REUSE,
    Decision,
    Policy,
    PolicyState,
    check_count,
    check_number,
    lead,
    probabilities,
)
from video.skip.signals import Signals

# Answers closer than this are a tie; keeps quotients finite.
_LEAST_LEAD = 1e-6


@dataclass(frozen=True)
class EveryNth(Policy):
    """Compute a frame, reuse its answer for the n - 1 frames after it; what needs no decoding is not decoded.

    Example:
        >>> import video
        >>> network = video.Stream(video.load_pretrained("tsm-motion-digits"))
        >>> prepare = video.Preprocess(size=48, resize=55)
        >>> policy = video.skip.EveryNth(10)
        >>> [one.index for one in video.skip.run(video.VideoReader("clip.mp4"), network, policy, prepare)
        ...  if one.entry.action == "compute"]
        [0, 10]
    """

    n: int
    parameter: ClassVar[str | None] = "n"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("n", self.n, 1)

    def judge(self, signals: Signals, state: PolicyState) -> Decision:
        if state.staleness + 1 >= self.n:
            return Decision(COMPUTE, f"1 in {self.n}")
        return Decision(REUSE, f"1 in {self.n}")


@dataclass(frozen=True)
class KeyFrames(Policy):
    """Compute the encoder's key frames only, which decode without any other frame."""

    def judge(self, signals: Signals, state: PolicyState) -> Decision:
        return Decision(COMPUTE, "key frame") if signals.is_keyframe else Decision(REUSE, "between key frames")


@dataclass(frozen=True)
class PacketSize(Policy):
    """Compute when the packets since the last computed frame hold more than `threshold` bytes, and key frames.

    What an encoder could not predict fills its packets. Nothing is decoded to decide.
    """

    threshold: float
    parameter: ClassVar[str | None] = "threshold"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold)

    def judge(self, signals: Signals, state: PolicyState) -> Decision:
        if signals.packet_size <= 0:
            return Decision(COMPUTE, "packet size unknown")
        if signals.is_keyframe:
            return Decision(COMPUTE, "key frame")
        state.carried += signals.packet_size
        if state.carried > self.threshold:
            return Decision(COMPUTE, "many bytes", state.carried)
        return Decision(REUSE, "few bytes", state.carried)


@dataclass(frozen=True)
class LumaDifference(Policy):
    """Compute when the luma differs from that of the last computed frame by more than `threshold` levels (0 to 255).

    The difference is the mean over the frame or, if larger, `local` times the mean of the block (1/16 of the short
    side) that changed most, so that a small moving object is not lost in a large still scene. Frames are held against
    the last computed one: slow changes add up.

    Attributes:
        hysteresis: once a frame has been computed for its change, `hysteresis * threshold` is enough for the next ones,
            until one stays below; 1 for none.
        local: weight of the block; 0 looks at the mean only.
        relative: divide the difference by the lead of the last answer's best logit over the next, and hold that against
            the threshold: a clear answer tolerates more change than a doubtful one. The network must return logits.

    Example:
        >>> import video
        >>> trace = video.skip.Trace()
        >>> classifier = video.Classifier(video.load_pretrained("tsm-motion-digits"))
        >>> answers = list(classifier.frames(video.VideoReader("still.mp4"), video.skip.LumaDifference(1.0), trace))
        >>> trace.counts["computed"], len(trace)
        (1, 20)
    """

    threshold: float = 1.0
    hysteresis: float = 1.0
    local: float = 0.125
    relative: bool = False
    parameter: ClassVar[str | None] = "threshold"
    reads: ClassVar[str] = "luma"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold)
        check_number("hysteresis", self.hysteresis, 0, 1)
        check_number("local", self.local)

    def judge(self, signals: Signals, state: PolicyState) -> Decision:
        assert state.reference is not None
        change = signals.change(state.reference)
        value = max(change.mean, self.local * change.peak)
        if self.relative:
            if signals.scores is None:
                raise ValueError("relative=True needs the last output of the network among the signals")
            value /= max(lead(signals.scores), _LEAST_LEAD)
        state.active = value > self.threshold * (self.hysteresis if state.active else 1)
        return Decision(COMPUTE, "changed", value) if state.active else Decision(REUSE, "unchanged", value)


@dataclass(frozen=True)
class MotionVectors(Policy):
    """Compute when the codec's motion since the last computed frame exceeds `threshold` pixels on average.

    Frames without vectors (key frames; codecs whose vectors FFmpeg does not export) are computed.
    """

    threshold: float
    parameter: ClassVar[str | None] = "threshold"
    reads: ClassVar[str] = "motion"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold)

    def judge(self, signals: Signals, state: PolicyState) -> Decision:
        motion = signals.motion
        if motion is None:
            return Decision(COMPUTE, "no motion vectors")
        state.carried += motion
        if state.carried > self.threshold:
            return Decision(COMPUTE, "moved", state.carried)
        return Decision(REUSE, "hardly moved", state.carried)


@dataclass(frozen=True)
class Confidence(Policy):
    """One answer for the whole video: visit up to `frames` frames, stop as soon as their mean answer is sure enough.

    The places are spread evenly and visited from coarse to fine; those near a key frame move onto it and come first,
    because a key frame decodes alone. After the exit nothing more is decoded. The answer is the mean of the logits.

    Attributes:
        threshold: probability of the best class that is sure enough.
        min_frames: never stop before so many.
    """

    threshold: float
    frames: int = 10
    min_frames: int = 1
    parameter: ClassVar[str | None] = "threshold"
    rising: ClassVar[bool] = False
    reads: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, 0, 1)
        if not 1 <= self.min_frames <= self.frames:
            raise ValueError(f"min_frames must be from 1 to frames={self.frames}, got {self.min_frames}")
        if self.max_staleness is not None or self.scene_cut is not None:
            raise ValueError("max_staleness and scene_cut are for policies that reuse answers, Confidence reuses none")

    def judge(self, signals: Signals, state: PolicyState) -> Decision:
        if not signals.outputs:
            return Decision(COMPUTE, "no answer yet")
        best = float(probabilities(torch.stack([torch.as_tensor(out) for out in signals.outputs]).mean(0)).max())
        if best >= self.threshold and len(signals.outputs) >= self.min_frames:
            return Decision(EXIT, "sure", best)
        return Decision(COMPUTE, "unsure", best)

    def order(self, n_frames: int, keyframes: Sequence[int]) -> list[int]:
        """Frames to visit: those on key frames from coarse to fine, then the others as they come."""
        count = min(self.frames, n_frames)
        places = [int((i + 0.5) * n_frames / count) for i in coarse_to_fine(count)]
        keys = np.asarray(sorted(keyframes), dtype=np.int64)
        snapped: list[int] = []
        rest: list[int] = []
        for place in places:
            key = int(keys[np.abs(keys - place).argmin()]) if len(keys) else -1
            near = key >= 0 and abs(key - place) * count * 2 <= n_frames and key not in snapped
            (snapped if near else rest).append(key if near else place)
        return snapped + sorted(set(rest) - set(snapped))


def coarse_to_fine(count: int) -> list[int]:
    """0 to count - 1: the middle, both ends, then always the number farthest from those already there."""
    order: list[int] = []
    distance = np.full(count, count)
    for first in (count // 2, 0, count - 1):
        if len(order) < count and first not in order:
            order.append(first)
            distance = np.minimum(distance, np.abs(np.arange(count) - first))
    while len(order) < count:
        order.append(int(distance.argmax()))
        distance = np.minimum(distance, np.abs(np.arange(count) - order[-1]))
    return order
