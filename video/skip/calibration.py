"""Thresholds from unlabelled video: as little computed as the allowed share of changed answers permits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from video.skip.observation import Observation, observe, simulate, simulate_exit
from video.skip.policy import COMPUTE, Policy, check_number

# Thresholds tried first; between the best of them and the next the search goes on by bisection.
_GRID = 24
# A threshold that saves less than this share of the frames is not worth its risk.
_LEAST_GAIN = 0.05
_LEAST_FRAMES = 20


@dataclass(frozen=True)
class Score:
    """What a policy did to a set of frames (of videos, for a policy that answers once for each).

    Attributes:
        answers: frames (videos) answered.
        flips: answers whose best class is not the dense network's.
        computed: frames that were run through the network.
        dense: frames that the network would run on without the policy.
    """

    answers: int
    flips: int
    computed: int
    dense: int

    @property
    def flip_rate(self) -> float:
        return self.flips / self.answers if self.answers else 0.0

    @property
    def computed_share(self) -> float:
        return self.computed / self.dense if self.dense else 0.0


@dataclass(frozen=True)
class Calibration:
    """The threshold found and what it cost, on the frames that chose it and on those that did not.

    Attributes:
        held_out: the honest estimate.
        ok: whether it too stays within max_flips.
    """

    parameter: str
    value: float
    max_flips: float
    fitted: Score
    held_out: Score

    @property
    def ok(self) -> bool:
        return self.held_out.flip_rate <= self.max_flips

    def __str__(self) -> str:
        fitted, held = self.fitted, self.held_out
        return (
            f"{self.parameter} = {self.value:.4g}: {fitted.computed_share:.1%} computed, {fitted.flip_rate:.2%} of "
            f"{fitted.answers} answers changed; held out {held.computed_share:.1%} computed, {held.flip_rate:.2%} of "
            f"{held.answers} answers changed ({self.max_flips:.2%} allowed)"
        )


class NothingToGainError(ValueError):
    """No threshold saves work within the allowed share of changed answers: run the network on every frame."""


def calibrate(
    policy: Policy,
    model: Any,
    video: Any,
    max_flips: float = 0.01,
    *,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    skip: str = "none",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Policy, Calibration]:
    """The policy with the parameter that computes least while at most `max_flips` of the best classes change.

    The dense network runs once over every frame; the policy is then simulated on what was seen. The first half of
    every video chooses, the second half reports. Confidence, which gives one answer for each video, needs several:
    every other one chooses.

    Args:
        policy: its other settings stay; the present value of its parameter does not matter.
        model: network, Stream or DeltaNetwork as of `run`; of the latter two the simulation is an estimate.
        video: a `VideoReader`, or a list of them.
        skip: as of `run`.
        progress: is told (done, frames) of each video.

    Raises:
        NothingToGainError: no value saves 5 % of the frames.
        ValueError: the policy has nothing to search, or the video is too short.
    """
    check_number("max_flips", max_flips, 0, 1)
    if policy.parameter is None:
        raise ValueError(f"{type(policy).__name__} has no threshold to calibrate")
    if skip != "none" and policy.needs in ("packets", "scores"):
        raise ValueError(f"skip={skip!r} is for policies that decode every frame, not for {policy}")
    videos = list(video) if isinstance(video, Sequence) and not hasattr(video, "packets") else [video]
    seen = [
        observe(model, one, preprocess, motion=policy.reads == "motion", skip=skip, progress=progress) for one in videos
    ]
    return search(policy, seen, max_flips)


def search(policy: Policy, seen: Sequence[Observation], max_flips: float = 0.01) -> tuple[Policy, Calibration]:
    """`calibrate` on videos that have been observed already."""
    fit, held_out = halves(policy, seen)
    values = candidates(policy, fit)

    def score(position: int) -> Score:
        return evaluate(changed(policy, values[position]), fit)

    step = max(1, len(values) // _GRID)
    scores = {position: score(position) for position in [*range(0, len(values), step), len(values) - 1] if values}
    passing = [position for position, one in scores.items() if one.flip_rate <= max_flips]
    best = min(passing, key=lambda position: (scores[position].computed, position), default=None)
    if best is not None:
        low, high = best, min((position for position in scores if position > best), default=best)
        while high - low > 1:
            middle = (low + high) // 2
            scores[middle] = score(middle)
            low, high = (middle, high) if scores[middle].flip_rate <= max_flips else (low, middle)
        best = min(best, low, key=lambda position: scores[position].computed)
    if best is None or scores[best].computed_share > 1 - _LEAST_GAIN:
        share = 1.0 if best is None else scores[best].computed_share
        raise NothingToGainError(
            f"nothing can be gained with {type(policy).__name__}: at {max_flips:.2%} changed answers it computes "
            f"{share:.1%} of the frames"
        )
    found = changed(policy, values[best])
    assert policy.parameter is not None
    return found, Calibration(policy.parameter, values[best], max_flips, scores[best], evaluate(found, held_out))


def halves(policy: Policy, seen: Sequence[Observation]) -> tuple[list[Observation], list[Observation]]:
    """What chooses the value and what reports on it."""
    if policy.reads == "scores":
        if len(seen) < 2 or any(len(one) == 0 for one in seen):
            raise ValueError(
                f"{type(policy).__name__} gives one answer for each video: video must be a list of at least 2 that "
                f"have frames, got {[len(one) for one in seen]} frames"
            )
        return list(seen[::2]), list(seen[1::2])
    frames = sum(len(one) for one in seen)
    if frames < _LEAST_FRAMES:
        raise ValueError(f"video must have at least {_LEAST_FRAMES} frames to calibrate on, got {frames}")
    middles = [len(one) // 2 for one in seen]
    first = [one.part(0, middle) for one, middle in zip(seen, middles)]
    second = [one.part(middle, len(one)) for one, middle in zip(seen, middles)]
    return first, second


def evaluate(policy: Policy, seen: Sequence[Observation]) -> Score:
    """Simulate the policy on what was seen and hold its answers against the dense network's."""
    answers = flips = computed = dense = 0
    for one in seen:
        if policy.reads == "scores":
            _, answer, visited = simulate_exit(policy, one)
            answers, computed = answers + 1, computed + visited
            flips += answer != int(one.outputs.mean(0).argmax())
            dense += len(policy.order(len(one), [i for i, key in enumerate(one.is_keyframe) if key]) or [])
        else:
            decisions, sources = simulate(policy, one)
            best = one.answers
            answers, dense = answers + len(one), dense + len(one)
            flips += int((best[sources] != best).sum()) if len(one) else 0
            computed += sum(decision.action == COMPUTE for decision in decisions)
    return Score(answers, flips, computed, dense)


def candidates(policy: Policy, seen: Sequence[Observation]) -> list[float]:
    """Values of the policy's parameter that tell its decisions apart, from the most careful to the boldest."""
    if policy.parameter == "n":
        return [float(n) for n in range(2, max((len(one) for one in seen), default=0) + 1)]
    careful, bold = (0.0, 1.0) if policy.rising else (1.0, 0.0)
    if policy.rising and not hasattr(policy, "weights"):
        bold = float("inf")
    found: set[float] = set()
    for value in (careful, bold):
        for one in seen:
            extreme = changed(policy, value)
            decisions = simulate_exit(extreme, one)[0] if policy.reads == "scores" else simulate(extreme, one)[0]
            found.update(decision.signal for decision in decisions if decision.signal is not None)
    return sorted(found, reverse=not policy.rising)


def changed(policy: Policy, value: float) -> Policy:
    """The policy with its parameter set."""
    assert policy.parameter is not None
    number = int(value) if policy.parameter == "n" else value
    return replace(policy, **{policy.parameter: number})  # type: ignore[arg-type]
