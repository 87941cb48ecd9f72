"""Thresholds from unlabelled video: as little computed as the allowed share of changed answers permits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from common_models import calibration
from video.skip.observation import Observation, observe, simulate, simulate_exit
from video.skip.policies import Confidence, EveryNth
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


@dataclass(frozen=True, kw_only=True)
class Calibration(calibration.Calibration):
    """The policy that `calibrate` found, and what to expect of it.

    `estimate` is the share of changed answers on other footage. Its error takes answers as independent of each other;
    those of one scene are not.

    Attributes:
        policy: with its parameter set; where nothing is to be gained, one that computes every frame.
        parameter: name of the policy's parameter.
        value: of the parameter; None where nothing is to be gained.
        fitted: on all frames, which chose it.
        held_out: on each half with the value that the other half alone chooses.
    """

    policy: Policy
    parameter: str
    value: float | None
    fitted: Score
    held_out: Score

    @property
    def ok(self) -> bool:
        """Whether the estimate stays within max_drop, its error left aside; `holds` counts it."""
        return self.max_drop is None or self.estimate <= self.max_drop

    def accelerate(self) -> Policy:
        """The policy, to be given to `run` or `Classifier.frames` with the network, which stays as it is."""
        return self.policy

    def __str__(self) -> str:
        fitted, held = self.fitted, self.held_out
        if self.value is None:
            return (
                f"nothing to gain within {self.max_drop:.2%} changed answers: {fitted.computed_share:.1%} computed; "
                "compute every frame"
            )
        return (
            f"{self.parameter} = {self.value:.4g}: {fitted.computed_share:.1%} computed, {fitted.flip_rate:.2%} of "
            f"{fitted.answers} answers changed; held out {held.computed_share:.1%} computed, {held.flip_rate:.2%} of "
            f"{held.answers} answers changed ({self.max_drop:.2%} allowed)"
        )


def calibrate(
    model: Any,
    data: Any,
    policy: Policy,
    *,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    skip: str = "none",
    progress: bool = False,
) -> Calibration:
    """Find the parameter with which a policy computes least while at most a share `max_drop` of best classes changes.

    The dense network runs once over every frame; the policy is then simulated on what was seen. All of
    it chooses; for the estimate each half of every video reports on the choice of the other half. Confidence, which
    gives one answer for each video, needs several, which it halves by taking every other one. A LearnedGate should be
    calibrated on other footage than it was fitted to.

    Args:
        model: network, Stream or DeltaNetwork as of `run`; of the latter two the simulation is an estimate.
        data: a `VideoReader`, or a list of them.
        policy: its other settings stay; the present value of its parameter does not matter.
        confidence: with which `holds` of the result speaks.
        skip: as of `run`.
        progress: show a bar of the frames.

    Returns:
        The result; where no value saves 5 % of the frames, its `gains` is False and its policy computes every frame.

    Raises:
        TypeError: `policy` is not a policy.
        ValueError: the policy has nothing to search, or the data is too short.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, as LumaDifference(1) is, got {policy!r}")
    check_number("max_drop", max_drop, 0, 1)
    calibration.check_confidence(confidence)
    if policy.parameter is None:
        raise ValueError(f"{type(policy).__name__} has no threshold to calibrate")
    if skip != "none" and policy.needs in ("packets", "scores"):
        raise ValueError(f"skip={skip!r} is for policies that decode every frame, not for {policy}")
    videos = list(data) if isinstance(data, Sequence) and not hasattr(data, "packets") else [data]
    motion = policy.reads == "motion"
    with tqdm(desc="calibrating", unit="frame", disable=not progress) as bar:
        seen = [
            observe(model, one, preprocess, motion=motion, skip=skip, progress=lambda done, frames: bar.update())
            for one in videos
        ]
    return search(policy, seen, max_drop=max_drop, confidence=confidence)


def search(
    policy: Policy, seen: Sequence[Observation], *, max_drop: float = 0.01, confidence: float = 0.95
) -> Calibration:
    """Calibrate on videos that have been observed already, as `calibrate` does."""
    parts = halves(policy, seen)
    best, score = choose(policy, seen, max_drop)
    assert policy.parameter is not None
    if best is None or score.computed_share > 1 - _LEAST_GAIN:
        dense = dense_score(policy, seen)
        return Calibration(
            max_drop=max_drop,
            estimate=0.0,
            error=0.0,
            confidence=confidence,
            gains=False,
            policy=_computing_everything(policy),
            parameter=policy.parameter,
            value=None,
            fitted=dense,
            held_out=dense,
        )
    held_out = Score(0, 0, 0, 0)
    for own, other in (parts, parts[::-1]):
        value, _ = choose(policy, own, max_drop)
        held_out += dense_score(policy, other) if value is None else evaluate(changed(policy, value), other)
    estimate, error = calibration.share_with_error(held_out.flips, held_out.answers)
    return Calibration(
        max_drop=max_drop,
        estimate=estimate,
        error=error,
        confidence=confidence,
        policy=changed(policy, best),
        parameter=policy.parameter,
        value=best,
        fitted=score,
        held_out=held_out,
    )


def _computing_everything(policy: Policy) -> Policy:
    """A policy that leaves nothing out of what this one would be asked about."""
    if isinstance(policy, Confidence):
        return replace(policy, threshold=1.0, min_frames=policy.frames)
    return EveryNth(1)


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
                f"{type(policy).__name__} gives one answer for each video: data must be a list of at least 2 that "
                f"have frames, got {[len(one) for one in seen]} frames"
            )
        return list(seen[::2]), list(seen[1::2])
    frames = sum(len(one) for one in seen)
    if frames < _LEAST_FRAMES:
        raise ValueError(f"data must have at least {_LEAST_FRAMES} frames to calibrate on, got {frames}")
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
