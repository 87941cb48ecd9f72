"""A network and everything around it: from a video or a camera to named answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common_models.scores import ClassScore, best_classes
from video import delta as delta_
from video.accelerate import accelerate
from video.models import TSM
from video.preprocess import Preprocess
from video.pretrained import ModelCard, load_pretrained
from video.reader import VideoReader
from video.sampling import sample_indices
from video.skip import EveryNth, Policy, Trace, run
from video.stream import Stream, shift_names

# Frames of a clip for networks of single frames, whose answer for a video is the mean over them.
SEGMENTS = 8
# What is cut from a frame is this share of its resized short side, as published for ImageNet and Kinetics.
CROP = 224 / 256


@dataclass(frozen=True)
class VideoAnswer:
    """The answer for a whole video.

    Attributes:
        best: classes, likeliest first.
        frames: numbers of the frames that were looked at, [clips, T].
    """

    best: list[ClassScore]
    frames: Tensor


@dataclass(frozen=True)
class FrameAnswer:
    """The answer that stands at one frame.

    Attributes:
        best: classes, likeliest first.
        action: "compute" where the network ran, "reuse" where the answer before still stands, "exit" for the answer
            to a whole video.
        why: the policy's reason.
    """

    index: int
    time: float
    best: list[ClassScore]
    action: str
    why: str


class Classifier:
    """Names what happens in videos: reading, preprocessing and an accelerated network in one.

    A network whose shifts read the past, or that has none, also runs frame by frame (`frames`), where a policy may
    leave frames out and `delta` recomputes only what changed. A network whose shifts read the future answers for whole
    videos only (`video`).

    Args:
        model: with a ModelCard as attribute `card`, as `load_pretrained` gives it; it is not changed.
        dtype: as of `accelerate`.
        delta: threshold of `delta.accelerate` for `frames`; None computes every pixel.
        card: in place of the model's own.

    Attributes:
        per_frame: what runs frame by frame, a Stream or a DeltaNetwork; None where the network cannot.
        preprocess: from frames to its input.

    Raises:
        ValueError: no card, or a delta for a network that cannot run frame by frame.

    Example:
        >>> import video
        >>> classifier = video.Classifier(video.load_pretrained("tsm-motion-digits"), delta=0.02)
        >>> answers = list(classifier.frames(video.VideoReader("clip.mp4"), video.skip.EveryNth(5)))
        >>> len(answers), sum(answer.action == "compute" for answer in answers)
        (20, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: str | torch.dtype | None = None,
        delta: float | None = None,
        card: ModelCard | None = None,
    ) -> None:
        card = getattr(model, "card", None) if card is None else card
        if not isinstance(card, ModelCard):
            raise ValueError(f"model must carry a ModelCard as attribute card, got {type(card).__name__}")
        self.card = card
        segments = model.num_segments if isinstance(model, TSM) else card.num_segments
        self.segments = segments if segments > 1 else SEGMENTS
        self.preprocess = Preprocess(card.size, round(card.size / CROP), card.mean, card.std)
        self.model = accelerate(model, dtype=dtype)
        self.live_refusal = _live_refusal(model)
        self.per_frame: Any = None
        if delta is not None:
            if self.live_refusal:
                raise ValueError(f"delta needs a network that runs frame by frame: {self.live_refusal}")
            self.per_frame = delta_.accelerate(model, threshold=delta, dtype=dtype)
        elif not self.live_refusal:
            self.per_frame = Stream(self.model)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        threads: int | None = None,
        delta: float | None = None,
        card: ModelCard | None = None,
    ) -> Classifier:
        """Load a network as `load_pretrained` does, and accelerate it.

        Args:
            threads: of torch in this process; None leaves them as they are.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(load_pretrained(name), dtype=dtype, delta=delta, card=card)

    def __call__(self, reader: VideoReader) -> VideoAnswer:
        """The answer for a whole video, as `video` gives it."""
        return self.video(reader)

    def stream(self, inputs: Iterable[VideoReader]) -> Iterator[VideoAnswer]:
        """The answers for whole videos, one after the other as they are asked for."""
        return (self.video(reader) for reader in inputs)

    def video(self, reader: VideoReader, mode: str = "uniform", crops: int = 1, top: int = 5) -> VideoAnswer:
        """The answer for a whole video, from the frames that `sample_indices` chooses.

        Args:
            mode: of `sample_indices`; its clips' logits are averaged.
            crops: of `Preprocess`; averaged too.

        Raises:
            ValueError: the video has no frames.
        """
        if not len(reader):
            raise ValueError(f"{reader.path}: no frames to classify")
        clips = sample_indices(len(reader), self.segments, mode)
        prepare = self.preprocess
        if crops != prepare.crops:
            prepare = Preprocess(prepare.size, prepare.resize, prepare.mean, prepare.std, crops)
        chosen, row = clips.flatten().unique(return_inverse=True)
        # Frame by frame: all frames of a video at full size would not fit into memory.
        prepared = [prepare(frame.rgb()[None]) for frame in reader.decode(chosen.tolist())]
        frames = torch.cat(prepared, 1)[:, row].unflatten(1, clips.shape)  # [crops, clips, T, 3, size, size]
        # Clip by clip: the activations of a hundred clips would not fit either.
        with torch.inference_mode():
            logits = [self._logits(x) for x in frames.flatten(0, 1)]  # of [T, 3, size, size]
        return VideoAnswer(self.best(torch.stack(logits).mean(0), top), clips)

    def _logits(self, clip: Tensor) -> Tensor:
        """The mean [classes] of what the network says of a clip [T, 3, size, size]."""
        return self.model(clip).float().mean(0)

    def frames(
        self, source: Any, policy: Policy | None = None, trace: Trace | None = None, top: int = 5
    ) -> Iterator[FrameAnswer]:
        """The answer at every frame of a `VideoReader` or live source, as the frames come.

        Args:
            policy: decides which frames are computed (see `video.skip`); every one by default.
            trace: gathers what was done.

        Raises:
            ValueError: the network cannot run frame by frame, or the policy cannot read the source.
        """
        if self.per_frame is None:
            raise ValueError(f"this network answers for whole videos only: {self.live_refusal}")
        last: Any = None
        best: list[ClassScore] = []
        for result in run(source, self.per_frame, policy or EveryNth(1), self.preprocess, trace=trace):
            if result.output is not last:
                last, best = result.output, self.best(result.output.float().flatten(), top)
            yield FrameAnswer(result.index, result.time, best, result.entry.action, result.entry.why)

    def best(self, logits: Tensor, top: int) -> list[ClassScore]:
        """The `top` likeliest classes of logits [classes]."""
        names = self.card.class_names
        if len(logits) != len(names):
            raise ValueError(f"the network gives {len(logits)} logits, its card names {len(names)} classes")
        return best_classes(logits.softmax(0), names, top)


def _live_refusal(model: nn.Module) -> str:
    """Why the network cannot run frame by frame; empty where it can."""
    try:
        shift_names(model)
    except ValueError as error:
        return str(error)
    return ""
