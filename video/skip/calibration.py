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

    def __add__(self, other: Score) -> Score:
        pairs = zip(vars(self).values(), vars(other).values())
        return Score(*(a + b for a, b in pairs))

    @property
    def flip_rate(self) -> float:
        return self.flips / self.answers if self.answers else 0.0

    @property
    def computed_share(self) -> float:
        return self.computed / self.dense if self.dense else 0.0


@dataclass(frozen=True)
class Calibration:
    """The threshold found and what it cost.

    Attributes:
        fitted: on all frames, which chose it.
        held_out: the honest estimate for other footage: each half with the value that the other half alone chooses.
        ok: whether the estimate too stays within max_flips; if not, the footage is too short or too uneven.
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

    The dense network runs once over every frame; the policy is then simulated on what was seen. All of
    it chooses; for the estimate each half of every video reports on the choice of the other half. Confidence, which
    gives one answer for each video, needs several, which it halves by taking every other one. A LearnedGate should be
    calibrated on other footage than it was fitted to.

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
    if not isinstance(policy, Policy):
        raise ValueError(f"policy must be a Policy, as LumaDifference(1) is, got {policy!r}")
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
    parts = halves(policy, seen)
    best, score = choose(policy, seen, max_flips)
    if best is None or score.computed_share > 1 - _LEAST_GAIN:
        raise NothingToGainError(
            f"nothing can be gained with {type(policy).__name__}: at {max_flips:.2%} changed answers it computes "
            f"{score.computed_share:.1%} of the frames"
        )
    held_out = Score(0, 0, 0, 0)
    for own, other in (parts, parts[::-1]):
        value, _ = choose(policy, own, max_flips)
        held_out += dense_score(policy, other) if value is None else evaluate(changed(policy, value), other)
    assert policy.parameter is not None
    return changed(policy, best), Calibration(policy.parameter, best, max_flips, score, held_out)


def choose(policy: Policy, seen: Sequence[Observation], max_flips: float) -> tuple[float | None, Score]:
    """The value that computes least within max_flips and its score; None and that of the dense run if there is none."""
    values = candidates(policy, seen)

    def score(position: int) -> Score:
        return evaluate(changed(policy, values[position]), seen)

    scores = {i: score(i) for i in [*range(0, len(values), max(1, len(values) // _GRID)), len(values) - 1] if values}
    passing = [position for position, one in scores.items() if one.flip_rate <= max_flips]
    if not passing:
        return None, dense_score(policy, seen)
    best = min(passing, key=lambda position: (scores[position].computed, position))
    low, high = best, min((position for position in scores if position > best), default=best)
    while high - low > 1:
        middle = (low + high) // 2
        scores[middle] = score(middle)
        low, high = (middle, high) if scores[middle].flip_rate <= max_flips else (low, middle)
    best = min(best, low, key=lambda position: scores[position].computed)
    return values[best], scores[best]


def halves(policy: Policy, seen: Sequence[Observation]) -> tuple[list[Observation], list[Observation]]:
    """Two parts of equal weight."""
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
            dense += visits(policy, one)
        else:
            decisions, sources = simulate(policy, one)
            best = one.answers
            answers, dense = answers + len(one), dense + len(one)
            flips += int((best[sources] != best).sum()) if len(one) else 0
            computed += sum(decision.action == COMPUTE for decision in decisions)
    return Score(answers, flips, computed, dense)


def dense_score(policy: Policy, seen: Sequence[Observation]) -> Score:
    """Every frame computed, nothing changed."""
    if policy.reads == "scores":
        dense = sum(visits(policy, one) for one in seen)
        return Score(len(seen), 0, dense, dense)
    frames = sum(len(one) for one in seen)
    return Score(frames, 0, frames, frames)


def visits(policy: Policy, seen: Observation) -> int:
    """Frames that a policy with an order of its own visits if it never exits."""
    return len(policy.order(len(seen), [index for index, key in enumerate(seen.is_keyframe) if key]) or [])


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
            extreme = replace(changed(policy, value), back_off=False)
            decisions = simulate_exit(extreme, one)[0] if policy.reads == "scores" else simulate(extreme, one)[0]
            found.update(decision.signal for decision in decisions if decision.signal is not None)
    return sorted(found, reverse=not policy.rising)


def changed(policy: Policy, value: float) -> Policy:
    """The policy with its parameter set."""
    assert policy.parameter is not None
    number = int(value) if policy.parameter == "n" else value
    return replace(policy, **{policy.parameter: number})  # type: ignore[arg-type]
