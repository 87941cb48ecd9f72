"""A video as policies see it, next to the dense network's answer on every frame: what calibration and learning need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from video.preprocess import Preprocess
from video.skip.pipeline import Answers, check_evaluating
from video.skip.policy import COMPUTE, EXIT, Decision, Policy
from video.skip.signals import Array, Signals, mean_motion, thumbnail


@dataclass(frozen=True)
class Observation:
    """N consecutive frames with everything that a policy may ask about them.

    Attributes:
        decoded: bool for each frame; False where the decoder was told to leave it out.
        motion: None for frames without vectors, or where they were not asked for.
        outputs: logits of the dense run, [N, classes].
    """

    time: list[float]
    is_keyframe: list[bool]
    packet_size: list[int]
    decoded: list[bool]
    luma: list[Array]
    motion: list[float | None]
    outputs: Tensor

    def __len__(self) -> int:
        return len(self.time)

    @property
    def answers(self) -> Tensor:
        """The dense network's best class, int64 [N]."""
        return self.outputs.argmax(1)

    def part(self, start: int, stop: int) -> Observation:
        """The frames from start to before stop, as a video of their own."""
        columns = {name: value[start:stop] for name, value in vars(self).items()}
        return Observation(**columns)

    def signals(self, index: int, **others: Any) -> Signals:
        """The frame's signals; nothing is left to decode."""
        return Signals(
            index,
            time=self.time[index],
            is_keyframe=self.is_keyframe[index],
            packet_size=self.packet_size[index],
            luma=self.luma[index],
            motion=self.motion[index],
            **others,
        )


def observe(
    model: Any,
    video: Any,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    *,
    motion: bool = False,
    skip: str = "none",
    progress: Callable[[int, int], None] | None = None,
) -> Observation:
    """Run the dense network once over a `VideoReader` and note what policies can see.

    Keeps some 30 kB for each frame. `model` and `preprocess` are those of `run`; `progress` is told (done, frames).

    Raises:
        ValueError: the network does not return logits, or is in training mode.
    """
    check_evaluating(model)
    answers = Answers(model, Preprocess() if preprocess is None else preprocess, keep_all=False)
    size, is_keyframe, time = (column.tolist() for column in video.packets)
    kept = set(range(len(size))) if skip == "none" else {frame.index for frame in video.frames(skip=skip)}
    luma: list[Array] = []
    moved: list[float | None] = []
    outputs: list[Tensor] = []
    for frame in video.frames(motion_vectors=motion):
        answers.compute(frame, False, {})
        if answers.best is None:
            raise ValueError(f"the network must return logits [1, classes], got {type(answers.last).__name__}")
        outputs.append(answers.last.detach().float().flatten().cpu())
        luma.append(thumbnail(frame.luma))
        moved.append(mean_motion(frame.motion_vectors) if motion else None)
        if progress is not None:
            progress(len(outputs), len(size))
    stacked = torch.stack(outputs) if outputs else torch.empty(0, 0)
    decoded = [index in kept for index in range(len(size))]
    return Observation(time, is_keyframe, size, decoded, luma, moved, stacked)


def simulate(policy: Policy, seen: Observation) -> tuple[list[Decision], list[int]]:
    """The policy's decisions on the frames that it is asked about, and the frame whose answer stands for each frame.

    For a network with memory this is an estimate: its answers are those of the dense run.
    """
    state = policy.start()
    decisions: list[Decision] = []
    sources: list[int] = []
    source = 0
    for index in range(len(seen)):
        if index and not seen.decoded[index] and policy.needs != "packets":
            state.seen += 1
            state.staleness += 1
        else:
            decision = policy.decide(seen.signals(index, scores=seen.outputs[source] if index else None), state)
            decisions.append(decision)
            if decision.action == COMPUTE:
                source = index
        sources.append(source)
    return decisions, sources


def simulate_exit(policy: Policy, seen: Observation) -> tuple[list[Decision], int, int]:
    """Decisions in the policy's own order, the video's best class by them, and the number of frames computed."""
    keys = [index for index, key in enumerate(seen.is_keyframe) if key]
    state = policy.start()
    decisions: list[Decision] = []
    outputs: list[Tensor] = []
    for index in policy.order(len(seen), keys) or []:
        decision = policy.decide(seen.signals(index, outputs=outputs), state)
        decisions.append(decision)
        if decision.action == EXIT:
            break
        outputs.append(seen.outputs[index])
    return decisions, int(torch.stack(outputs).mean(0).argmax()), len(outputs)
