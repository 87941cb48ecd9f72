"""A run of `trisparse classify-video`: many sources, one file of answers, progress, stop and resume."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from trisparse import terminal, zoo
from trisparse.output.spool import Journal, check_new
from trisparse.output.stopping import Stop, stopped, stopping
from trisparse.videos.classify import Progress, Summary, classify, default_model, load_classifier
from trisparse.videos.sources import Source
from video.classify import Classifier
from video.skip import draw_timeline

if TYPE_CHECKING:
    from trisparse.commands.classify_video import VideoOptions

PICTURES = (".png", ".svg", ".pdf")


def run(sources: Sequence[Source], options: VideoOptions) -> int:
    """Classify all sources; the number of those that failed. Without a model `default_model` is taken.

    Raises:
        ValueError, OSError: what concerns all of them: the network, the places to write to.
        KeyboardInterrupt: Ctrl-C, or told to end; the answers to whole sources are kept for the next run.
    """
    output = options.output
    camera = next((source for source in sources if source.is_camera), None)
    if camera is not None:
        options.check_camera(camera.place)
    pictures = _pictures(sources, options.picture)
    model, word = (options.model, None) if options.model is not None else default_model()
    if word is not None:
        print(word, file=sys.stderr)
    classifier = load_classifier(model, options, camera is not None)
    failed = 0
    with ExitStack() as stack:
        journal = None
        if output is not None:
            _check_output(output, sources, camera is not None and not options.overwrite)
            settings = {"model": model, **zoo.fingerprint(model), **options.settings}
            journal = stack.enter_context(Journal(output, settings, options.overwrite))
        finished = set() if journal is None else journal.finished
        left = [source for source in sources if source.place not in finished]
        if not finished and not options.overwrite:
            check_new(pictures.values())
        stop = stack.enter_context(stopping(at_once=camera is None))
        if len(left) < len(sources):
            print(f"{len(sources) - len(left)} of {len(sources)} videos were done before")
        bar = stack.enter_context(tqdm(total=len(left), unit="video", disable=len(left) < 2 or None))
        for source in left:
            try:
                failed += not _answer(source, classifier, options, journal, stop, pictures.get(source), bar)
                if journal is not None:
                    with stop.later():
                        journal.finish(source.place)
            except KeyboardInterrupt:
                _stop(journal, source, output, len(sources), options.overwrite)
                raise
            bar.update()
    if output is not None:
        print(f"wrote {output}")
    terminal.tell_failures(failed, len(sources), "videos")
    return failed


def _answer(
    source: Source,
    classifier: Classifier,
    options: VideoOptions,
    journal: Journal | None,
    stop: Stop,
    picture: Path | None,
    bar: tqdm,
) -> bool:
    """Classify one source and say what was found; whether that succeeded, else the reason is reported."""
    try:
        summary = _follow(classify(source, classifier, options, journal, lambda: stop.asked), source)
    except (ValueError, OSError) as error:
        terminal.complain(error, debug=options.debug)
        if journal is not None:
            journal.write([{"video": source.place, "error": terminal.one_line(error)}])
        return False
    bar.write("\n".join([f"{source.place}: {summary.lines[0]}", *summary.lines[1:]]))
    return _draw(summary, picture, classifier)


def _check_output(output: Path, sources: Sequence[Source], keep_unfinished: bool) -> None:
    """Raises ValueError or FileExistsError where answers would be written over what cannot be had again."""
    if any(source.path.exists() and output.exists() and output.samefile(source.path) for source in sources):
        raise ValueError(f"{output}: the answers would overwrite the video they come from")
    partial = Path(f"{output}.partial")
    if keep_unfinished and partial.exists() and partial.stat().st_size:
        raise FileExistsError(
            f"{partial} holds the answers of a run that was cut off, and a camera cannot give its frames again: "
            "move the file away, or start anew with --overwrite"
        )


def _stop(journal: Journal | None, source: Source, output: Path | None, total: int, overwrite: bool) -> None:
    """Keep what can be kept of a run that is interrupted, and say so."""
    print(file=sys.stderr)
    if journal is None:
        print("Stopped.", file=sys.stderr)
    elif source.is_camera:  # nobody can give its frames again
        journal.finish(source.place)
        journal.close()
        print(f"wrote {output}", file=sys.stderr)
    else:
        done = f"{len(journal.finished)} of {total} videos are done" if journal.finished else None
        print(stopped(done, overwrite), file=sys.stderr)


def _follow(progress: Progress, source: Source) -> Summary:
    """Run to the end with a bar of frames."""
    # Closed first of all: what was answered last must reach the journal while that is open.
    with (
        tqdm(unit="frame", desc=source.name[:32], leave=False, disable=None, mininterval=0.5) as bar,
        closing(progress),
    ):
        while True:
            try:
                done, bar.total = next(progress)
            except StopIteration as end:
                summary: Summary = end.value
                return summary
            bar.update(done - bar.n)


def _pictures(sources: Sequence[Source], place: Path | None) -> dict[Source, Path]:
    """Where the picture of each source goes."""
    if place is None:
        return {}
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--picture needs matplotlib: pip install 'trisparse[video]'")
    if len(sources) == 1 and not place.is_dir():
        if not place.parent.is_dir():
            raise FileNotFoundError(f"{place}: its folder {place.parent} does not exist")
        if place.suffix.lower() not in PICTURES:
            raise ValueError(f"--picture must be a file with a suffix of {' '.join(PICTURES)}, got {place}")
        return {sources[0]: place}
    if place.exists() and not place.is_dir():
        raise ValueError(f"--picture must be a folder for more than one video, got the file {place}")
    places = {source: place / f"{source.name}.png" for source in sources}
    taken: dict[Path, Source] = {}
    for source, path in places.items():
        if path in taken:
            raise ValueError(f"{taken[path].place} and {source.place} would both be drawn as {path}")
        taken[path] = source
    place.mkdir(parents=True, exist_ok=True)
    return places


def _draw(summary: Summary, path: Path | None, classifier: Classifier) -> bool:
    """Draw what was done with a source's frames; whether that succeeded, for its answers are there all the same."""
    if path is None:
        return True
    if summary.trace is None or not len(summary.trace):
        print(f"{summary.source.place}: no picture, since no frame came")
        return True
    try:
        draw_timeline(summary.trace, path, title=summary.source.name, labels=classifier.card.class_names)
    except (ValueError, OSError) as error:
        terminal.complain(error)
        return False
    print(f"wrote {path}")
    return True
