"""A run of `trisparse classify-video`: many sources, one file of answers, progress, stop and resume."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from trisparse import terminal
from trisparse.output.journal import Journal
from trisparse.videos.classify import (
    Progress,
    Summary,
    Wanted,
    classify,
    default_model,
    is_camera,
    load_classifier,
    parse_policy,
)
from video.classify import Classifier
from video.preprocess import CROPS
from video.skip import Confidence, draw_timeline

# Of the ways to choose frames, those that give the same frames each time.
CLIPS = ("uniform", "twice", "dense")
PICTURES = (".png", ".svg", ".pdf")


def wanted(
    live: bool,
    policy: str | None,
    max_staleness: int | None,
    scene_cut: float | None,
    delta: float | None,
    clips: str,
    crops: int,
    top: int,
    sources: Sequence[str],
) -> Wanted:
    """What the options ask for.

    Raises:
        ValueError: options that exclude each other, or that would have no effect.
    """
    if policy is None and (max_staleness is not None or scene_cut is not None):
        raise ValueError("--max-staleness and --scene-cut limit a policy: add --policy")
    chosen = None if policy is None else parse_policy(policy, max_staleness, scene_cut)
    exits = isinstance(chosen, Confidence)
    if live and exits:
        raise ValueError("--policy exit answers for whole videos, --live for every frame: leave one of them out")
    if delta is not None and exits:
        raise ValueError("--delta follows the frames in order, --policy exit jumps between them: leave one of them out")
    if clips not in CLIPS:
        raise ValueError(f"--clips must be one of {', '.join(CLIPS)}, got {clips!r}")
    if crops not in CROPS:
        raise ValueError(f"--crops must be one of {', '.join(map(str, CROPS))}, got {crops}")
    by_frame = live or delta is not None or any(is_camera(source) for source in sources)
    found = Wanted(by_frame, chosen, clips, crops, top)
    if (found.by_frame or exits) and (clips != "uniform" or crops != 1):
        raise ValueError("--clips and --crops belong to answers for whole videos, here every frame is answered")
    return found


def run(
    sources: Sequence[str],
    model: str | None,
    dtype: str,
    delta: float | None,
    wanted: Wanted,
    output: Path | None,
    timeline: Path | None,
    overwrite: bool,
    labels: Path | None = None,
) -> int:
    """Classify all sources; the number of those that failed. Without a model `default_model` is taken.

    Raises:
        ValueError, OSError: what concerns all of them: the network, the places to write to.
    """
    if timeline is not None and not wanted.by_frame and wanted.policy is None:
        raise ValueError("--timeline shows what was done frame by frame: add --live, --policy or --delta")
    pictures = _pictures(sources, timeline)
    for source in sources:
        if not is_camera(source) and not Path(source).is_file():
            raise FileNotFoundError(f"{source}: no such video")
    if model is None:
        model, word = default_model()
        print(word, file=sys.stderr)
    classifier = load_classifier(model, dtype, delta, labels)
    failed = 0
    with ExitStack() as stack:
        journal = None
        if output is not None:
            if any(Path(source).exists() and output.exists() and output.samefile(source) for source in sources):
                raise ValueError(f"{output}: the answers would overwrite the video they come from")
            partial = Path(f"{output}.partial")
            if any(map(is_camera, sources)) and not overwrite and partial.exists() and partial.stat().st_size:
                raise FileExistsError(
                    f"{partial} holds the answers of a run that was cut off, and a camera cannot give its frames "
                    "again: move it away, or start anew with --overwrite"
                )
            settings: dict[str, object] = {"model": model, "dtype": dtype, "delta": delta, "wanted": repr(wanted)}
            settings["labels"] = None if labels is None else str(labels)
            journal = stack.enter_context(Journal(output, settings, overwrite))
        stack.enter_context(_resumable(output, overwrite))
        stopping = stack.enter_context(_stopping()) if any(map(is_camera, sources)) else lambda: False
        left = [source for source in sources if journal is None or source not in journal.finished]
        if len(left) < len(sources):
            print(f"{len(sources) - len(left)} of {len(sources)} videos were done before")
        bar = stack.enter_context(tqdm(total=len(left), unit="video", disable=len(left) < 2 or None))
        for source in left:
            try:
                summary = _follow(classify(source, classifier, wanted, journal, source in pictures, stopping), source)
            except (ValueError, OSError) as error:
                failed += 1
                _complain(error)
                if journal is not None:
                    journal.write([{"video": source, "error": terminal.one_line(error)}])
            except KeyboardInterrupt:
                if journal is not None and is_camera(source):  # nobody can give its frames again
                    journal.finish(source)
                    journal.close()
                    print(f"\nwrote {output}", file=sys.stderr)
                raise
            else:
                bar.write("\n".join([f"{source}: {summary.lines[0]}", *summary.lines[1:]]))
                try:
                    _draw(summary, pictures.get(source), classifier)
                except (ValueError, OSError) as error:  # the answers are there all the same
                    failed += 1
                    _complain(error)
            if journal is not None:
                journal.finish(source)
            bar.update()
    if output is not None:
        print(f"wrote {output}")
    return failed


def _complain(error: Exception) -> None:
    print(f"trisparse: error: {terminal.one_line(error)}", file=sys.stderr, flush=True)


def _follow(progress: Progress, source: str) -> Summary:
    """Run to the end with a bar of frames."""
    name = Path(source).name[:32]
    # Closed first of all: what was answered last must reach the journal while that is open.
    with tqdm(unit="frame", desc=name, leave=False, disable=None, mininterval=0.5) as bar, closing(progress):
        while True:
            try:
                done, bar.total = next(progress)
            except StopIteration as end:
                summary: Summary = end.value
                return summary
            bar.update(done - bar.n)


def _pictures(sources: Sequence[str], timeline: Path | None) -> dict[str, Path]:
    """Where the time line of each source goes."""
    if timeline is None:
        return {}
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--timeline needs matplotlib: pip install 'trisparse[video]'")
    if len(sources) == 1 and not timeline.is_dir():
        if not timeline.parent.is_dir():
            raise FileNotFoundError(f"{timeline}: its folder {timeline.parent} does not exist")
        if timeline.suffix.lower() not in PICTURES:
            raise ValueError(f"--timeline must be a picture with a suffix of {' '.join(PICTURES)}, got {timeline}")
        return {sources[0]: timeline}
    if timeline.exists() and not timeline.is_dir():
        raise ValueError(f"--timeline must be a folder for more than one video, got the file {timeline}")
    places = {source: timeline / f"{Path(source).name}.png" for source in sources}
    taken: dict[Path, str] = {}
    for source, place in places.items():
        if place in taken:
            raise ValueError(f"{taken[place]} and {source} would both be drawn as {place}")
        taken[place] = source
    timeline.mkdir(parents=True, exist_ok=True)
    return places


def _draw(summary: Summary, path: Path | None, classifier: Classifier) -> None:
    if path is None:
        return
    if summary.trace is None or not len(summary.trace):
        print(f"{summary.source}: no time line, no frame came")
        return
    draw_timeline(summary.trace, path, title=Path(summary.source).name, labels=classifier.card.class_names)
    print(f"wrote {path}")


@contextmanager
def _resumable(output: Path | None, overwrite: bool) -> Iterator[None]:
    """A word on what a stopped run leaves behind."""
    try:
        yield
    except KeyboardInterrupt:
        partial = Path(f"{output}.partial")
        if output is not None and partial.exists():
            again = "the same command without --overwrite" if overwrite else "the same command"
            print(f"\nstopped; {again} goes on ({partial} holds what is done)", file=sys.stderr)
        raise


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed or the process told to end: a camera ends with its frame; told again, at once."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before: Any = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
