"""The largest threshold that leaves a network's answers as they are, found on unlabelled video."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from common_kernels.checks import describe
from common_models import calibration
from video.delta.network import DeltaNetwork
from video.preprocess import Preprocess
from video.state import StreamState
from video.stream import shift_names

# From a change that no one sees to one as large as the values themselves.
CANDIDATES = tuple(round(0.005 * 2 ** (step / 2), 5) for step in range(16))


@dataclass(frozen=True)
class Try:
    """A threshold, the share of answers that it changed, and the share of multiplications that it left."""

    threshold: float
    flips: float
    work: float


@dataclass(frozen=True, kw_only=True)
class Calibration(calibration.Calibration):
    """The threshold that `calibrate` found, and what to expect of it.

    `estimate` is the share of changed answers on other footage: each half with the threshold that the other half alone
    would choose. Its error takes frames as independent of each other; those of one scene are not.

    Attributes:
        threshold: 0 where no candidate changes few enough answers.
        flips: share of the frames whose best class differs from the dense network's.
        frames: how many were seen.
        work: mean share of the dense multiplications, were every frame run by its changes (NaN on a GPU).
        tried: in the order of trying.
    """

    threshold: float
    flips: float
    frames: int
    work: float
    tried: tuple[Try, ...]
    calibrated: DeltaNetwork = field(repr=False, compare=False)

    @property
    def held_out(self) -> float:
        """`estimate` by its former name."""
        return self.estimate

    @property
    def network(self) -> DeltaNetwork:
        """What `accelerate` gives."""
        return self.accelerate()

    def accelerate(self) -> DeltaNetwork:
        """The network with the threshold; with threshold 0, which changes no answer, where nothing is to be gained."""
        one = self.calibrated
        return one.variant(self.threshold, one.adapt, one.frame_threshold)

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:g}: {self.flips:.2%} of {self.frames} answers changed (held out "
            f"{self.held_out:.2%}), {self.work:.1%} of the multiplications done"
        )


def calibrate(
    model: nn.Module,
    data: Any,
    *,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    candidates: Sequence[float] = CANDIDATES,
    progress: bool = False,
) -> Calibration:
    """Find by bisection the largest threshold with which at most a share `max_drop` of the best classes changes.

    Answers are compared with the dense network's, and the network is not changed. The frames need no labels; take
    some that are like those to come, a few hundred or more: one answer of a hundred cannot be seen on fewer. All of
    them choose the threshold; `estimate` of the result tells what to expect of others.

    Args:
        model: a DeltaNetwork, whose settings other than the threshold stay, or a network for `accelerate`.
        data: frames [T, C, H, W] of one stream, normalised; an iterable of frames [C, H, W]; or a `VideoReader`.
        preprocess: for a `VideoReader`, from uint8 [1, H, W, 3] to [crops, 1, C, h, w], of which the first crop is
            taken; `Preprocess()` by default.
        candidates: thresholds to choose from, ascending.
        progress: show a bar of the thresholds that are tried.

    Raises:
        ValueError: no frames, an output that is not logits [B, classes], arguments out of range.
    """
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop must be a share from 0 to 1, got {max_drop}")
    calibration.check_confidence(confidence)
    candidates = [float(each) for each in candidates]
    if not candidates or candidates != sorted(candidates) or not all(0 < each < math.inf for each in candidates):
        raise ValueError(f"candidates must be positive numbers, ascending, got {candidates}")
    delta = model if isinstance(model, DeltaNetwork) else DeltaNetwork(model)
    frames = _frames(data, preprocess)
    right = _dense_answers(delta, frames())
    if not len(right):
        raise ValueError("data must have frames, got none")
    tries: dict[float, _Tried] = {}
    bar = tqdm(desc="calibrating", unit="threshold", disable=not progress)

    def flips(threshold: float, part: slice) -> float:
        if threshold not in tries:
            tries[threshold] = _try(delta, threshold, frames, right)
            bar.update()
        return tries[threshold].flips(part)

    everything = slice(None)
    best = _choose(candidates, partial(flips, part=everything), max_drop)
    found = Try(best, flips(best, everything), tries[best].work)
    tried = tuple(Try(each, one.flips(everything), one.work) for each, one in tries.items())
    first, second = slice(0, len(right) // 2), slice(len(right) // 2, None)
    held_out = 0.0
    for own, other in ((first, second), (second, first)):
        frames_own, frames_other = len(right[own]), len(right[other])
        if frames_own and frames_other:
            threshold = _choose(candidates, partial(flips, part=own), max_drop)
            held_out += flips(threshold, other) * frames_other / len(right)
    bar.close()
    return Calibration(
        max_drop=max_drop,
        estimate=held_out,
        error=calibration.share_with_error(round(held_out * len(right)), len(right))[1],
        confidence=confidence,
        gains=found.threshold > 0,
        threshold=found.threshold,
        flips=found.flips,
        frames=len(right),
        work=found.work,
        tried=tried,
        calibrated=delta,
    )


def _choose(candidates: Sequence[float], flips: Callable[[float], float], max_flips: float) -> float:
    """By bisection the largest candidate that changes few enough answers; 0 where none does."""
    low, high = 0, len(candidates)  # candidates[:low] change few enough answers, candidates[high:] too many
    while low < high:
        middle = (low + high) // 2
        if flips(candidates[middle]) <= max_flips:
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1] if low else 0.0


@dataclass(frozen=True)
class _Tried:
    """Which answers a threshold changed, bool [T] for each way to run the frames, and the share of work it left."""

    changed: tuple[Tensor, ...]
    work: float

    def flips(self, part: slice) -> float:
        """The worst share of any way."""
        return max(changed[part].double().mean().item() for changed in self.changed)


def _frames(video: Any, preprocess: Callable[[Tensor], Tensor] | None) -> Callable[[], Iterator[Tensor]]:
    """A function that begins the frames anew, each [1, C, H, W]."""
    if hasattr(video, "frames"):
        prepare = Preprocess() if preprocess is None else preprocess
        return lambda: (prepare(frame.rgb()[None])[0] for frame in video.frames())
    if preprocess is not None:
        raise ValueError("preprocess is for a VideoReader: frames must be normalised already")
    frames: Iterable[Tensor] = video if isinstance(video, Tensor) else list(video)

    def each() -> Iterator[Tensor]:
        for frame in frames:
            if not isinstance(frame, Tensor) or frame.ndim != 3:
                got = describe(frame) if isinstance(frame, Tensor) else type(frame).__name__
                raise ValueError(f"data must be a VideoReader or frames [C, H, W], got {got}")
            yield frame[None]

    return each


def _try(delta: DeltaNetwork, threshold: float, frames: Callable[[], Iterator[Tensor]], right: Tensor) -> _Tried:
    """Two ways to run the frames: always by their changes, and as the network's policy does."""
    answers, work = _answers(delta.variant(threshold, False, delta.frame_threshold), frames())
    changed = [answers != right]
    if delta.adapt:
        answers, _ = _answers(delta.variant(threshold, True, delta.frame_threshold), frames())
        changed.append(answers != right)
    return _Tried(tuple(changed), work)


def _dense_answers(delta: DeltaNetwork, frames: Iterator[Tensor]) -> Tensor:
    """The best class of each frame where nothing is left out, int64 [T]."""
    if shift_names(delta.model):  # an answer depends on the frames before: run them in turn, exactly
        return _answers(delta.variant(0.0, adapt=True), frames)[0]
    answers = [_best(delta.dense(frame)) for frame in frames]
    return torch.cat(answers) if answers else torch.empty(0, dtype=torch.int64)


def _best(output: Any) -> Tensor:
    """The best class [B] of the network's output, wherever the logits are in it."""
    logits = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
    if logits is None or logits.ndim != 2:
        got = type(output).__name__ if logits is None else describe(logits)
        raise ValueError(f"the network must return logits [B, classes], got {got}")
    return logits.argmax(1).cpu()


def _answers(network: DeltaNetwork, frames: Iterator[Tensor]) -> tuple[Tensor, float]:
    """The best class of each frame, int64 [T], and the mean share of the multiplications after the first."""
    state: StreamState | None = None
    answers, work = [], []
    for frame in frames:
        output, state = network.step(frame, state)
        answers.append(_best(output))
        last = network.last_work
        counted = last is not None and (last.mode != "changed" or last.computed)
        work.append(last.share if last is not None and counted else math.nan)
    if not answers:
        return torch.empty(0, dtype=torch.int64), math.nan
    later = work[1:] or work
    return torch.cat(answers), sum(later) / len(later)
