"""The one interface of all policies: what they decide, what they remember, what they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from video.skip.signals import TIERS, Array, Signals

COMPUTE, REUSE, EXIT = "compute", "reuse", "exit"
# After so many frames in a row that had changed, a policy looks at fewer: between looks it computes 2, 4, ... frames,
# at most so many. What it misses where the scene comes to rest is no more than that.
_LIVELY = 8
_MOST_BLIND = 8
_LIVELY_ENOUGH = _LIVELY + _MOST_BLIND.bit_length()


@dataclass(frozen=True)
class Decision:
    """What to do with a frame.

    Attributes:
        action: "compute" (run the network), "reuse" (the last answer stands) or "exit" (no frame after this matters).
        why: the reason in a few words.
        signal: the number that was held against the threshold, where there was one.
        reset: the frame begins another scene; what a network remembers of the frames before is worth nothing.
    """

    action: str
    why: str
    signal: float | None = None
    reset: bool = False


@dataclass
class PolicyState:
    """What a policy remembers of one video or stream; `decide` moves it on.

    Attributes:
        seen: frames decided about.
        staleness: frames since the last computed one.
        reference: luma thumbnail of the last computed frame, where the policy reads luma.
        carried: bytes or pixels of motion gathered since the last computed frame.
        active: the last frame was computed because it had changed.
        usual: running mean of packet sizes, where the policy wants it.
        lively: frames in a row that the policy looked at and found changed, counted until it looks at fewest.
        blind: frames that will yet be computed without looking at them.
    """

    seen: int = 0
    staleness: int = 0
    reference: Array | None = None
    carried: float = 0.0
    active: bool = False
    usual: float = 0.0
    lively: int = 0
    blind: int = 0

    def clone(self) -> PolicyState:
        """A state that moves on by itself."""
        return replace(self)


@dataclass(frozen=True)
class Policy(ABC):
    """Decides frame by frame, before conversion to RGB and where it can before decoding.

    The first frame is always computed.

    Attributes:
        max_staleness: most frames in a row that may be reused; None for no limit.
        scene_cut: mean luma difference from the last computed frame, in levels of 0 to 255, from which on a frame
            begins a new scene: it is computed and resets the network's state. Reads the luma of every frame.
        back_off: look at fewer frames while every one has changed, so that a policy which cannot skip costs next to
            nothing; for policies that read luma and have no scene_cut.
        parameter: the attribute that `calibrate` searches.
        rising: whether a larger parameter computes fewer frames.
        reads: the tier that `judge` reads.
    """

    max_staleness: int | None = field(default=None, kw_only=True)
    scene_cut: float | None = field(default=None, kw_only=True)
    back_off: bool = field(default=True, kw_only=True)

    parameter: ClassVar[str | None] = None
    rising: ClassVar[bool] = True
    reads: ClassVar[str] = "packets"

    def __post_init__(self) -> None:
        if self.max_staleness is not None:
            check_count("max_staleness", self.max_staleness, 0)
        if self.scene_cut is not None:
            check_number("scene_cut", self.scene_cut)

    @property
    def needs(self) -> str:
        """The dearest tier that this policy reads: "packets", "luma", "motion" or "scores"."""
        return max(self.reads, "luma" if self.scene_cut is not None else "packets", key=TIERS.index)

    def start(self) -> PolicyState:
        """The state of a video or stream of which no frame has been seen."""
        return PolicyState()

    def decide(self, signals: Signals, state: PolicyState) -> Decision:
        """Decide about the next frame; the state moves on as if the decision is carried out."""
        if state.blind:
            state.blind -= 1
            decision = Decision(COMPUTE, "lively, not looked at")
        else:
            decision = self._decide(signals, state)
            if self.back_off and self.reads == "luma" and self.scene_cut is None:
                # Beyond _LIVELY_ENOUGH nothing changes, and the shift below would grow with the stream.
                state.lively = min(state.lively + 1, _LIVELY_ENOUGH) if decision.action == COMPUTE else 0
                if state.lively >= _LIVELY:
                    state.blind = min(_MOST_BLIND, 2 << (state.lively - _LIVELY))
        state.seen += 1
        if decision.action == COMPUTE:
            state.staleness, state.carried = 0, 0.0
            if self._compares_luma and not state.blind:  # the frame after this one will be held against it
                state.reference = signals.luma
        else:
            state.staleness += 1
        return decision

    def order(self, n_frames: int, keyframes: Sequence[int]) -> list[int] | None:
        """The frames in the order in which they are visited; None for all of them as they come."""
        return None

    @abstractmethod
    def judge(self, signals: Signals, state: PolicyState) -> Decision:
        """The policy's own opinion of a frame that is neither the first, nor a new scene, nor due for its age."""

    @property
    def _compares_luma(self) -> bool:
        return self.scene_cut is not None or self.reads == "luma"

    def _decide(self, signals: Signals, state: PolicyState) -> Decision:
        if state.seen == 0:
            return Decision(COMPUTE, "first frame")
        if self._compares_luma and state.reference is not None:
            if signals.luma.shape != state.reference.shape:
                return Decision(COMPUTE, "new resolution", reset=True)
            if self.scene_cut is not None:
                mean = signals.change(state.reference).mean
                if mean >= self.scene_cut:
                    return Decision(COMPUTE, "scene cut", mean, reset=True)
        if self.max_staleness is not None and state.staleness >= self.max_staleness:
            return Decision(COMPUTE, "stale")
        return self.judge(signals, state)


def check_count(name: str, value: int, low: int) -> None:
    """Raise unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def check_number(name: str, value: float, low: float = 0.0, high: float = math.inf) -> None:
    """Raise unless low <= value <= high; NaN is neither."""
    if not low <= value <= high:
        span = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be {span}, got {value}")


def lead(output: Tensor) -> float:
    """By how much the best logit of an output [1, classes] or [classes] exceeds the next; infinite for one class."""
    best = logits(output).topk(min(2, output.shape[-1])).values
    return float(best[0] - best[1]) if len(best) > 1 else math.inf


def probabilities(output: Tensor) -> Tensor:
    """Softmax [classes] of a network's output [1, classes] or [classes]."""
    return torch.softmax(logits(output), 0)


def logits(output: Tensor) -> Tensor:
    """A network's output [1, classes] or [classes] as float32 [classes]."""
    if not isinstance(output, Tensor) or output.ndim not in (1, 2) or (output.ndim == 2 and len(output) != 1):
        came = f"{list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the network must return logits [1, classes] for this policy, got {came}")
    return output.detach().float().flatten()
