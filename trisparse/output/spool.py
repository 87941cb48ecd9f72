"""The bytes of a result in the making, which outlive a process that is stopped or killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from common_models.files import replace_atomically

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class Spool:
    """A file that is appended to, with marks that say how far the work has come.

    Pieces gather in `<path>.partial`; `<path>.progress` holds the settings and a line for each mark. A run that finds
    the two cuts off what came after the last mark and continues from there. `finish` makes the result of the pieces
    under its own name; until then an older file of that name stays. Where an error ends the work, both files stay for
    the next run, unless nothing was written yet.

    Args:
        settings: whatever the pieces depend on, as JSON. An unfinished run with other settings is not continued.
        overwrite: replace a finished file, and start anew over an unfinished one.
        notes: what each run writes anew beside the settings.

    Attributes:
        partial: where the pieces gather.
        mark: the last mark, of the unfinished run that is continued or of this one; None before the first.
        marks: all marks of the unfinished run that is continued.
        found: the notes of the unfinished run; None where there is none.

    Raises:
        FileExistsError: a finished file of that name, an unfinished one with other settings, or one that another run is
            writing.
        OSError: a place that cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        overwrite: bool = False,
        notes: Any = None,
    ) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path}: a directory, but a file to write was expected")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path}: its folder {self.path.parent} does not exist")
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._progress = self.path.with_name(self.path.name + ".progress")
        self.mark: dict[str, Any] | None = None
        self.marks: list[dict[str, Any]] = []
        self.found: Any = None
        start = {"settings": json.loads(json.dumps(settings)), "notes": json.loads(json.dumps(notes))}
        self._whole: list[dict[str, Any]] = []
        self._unmarked = self._done = False
        created = not self.partial.exists()
        self._pieces = self.partial.open("a+b")
        try:
            self._lock()
            end = 0
            if not overwrite and self._progress.is_file():
                end = self._resume(start["settings"])
            if self.mark is None and not overwrite:
                check_new([self.path])
        except BaseException:
            self._pieces.close()
            if created:
                self.partial.unlink()
            raise
        self._pieces.truncate(end)
        # Without a mark that was cut off, so that the next one starts on a line of its own.
        with replace_atomically(self._progress) as rewritten:
            rewritten.write_text("".join(json.dumps(line) + "\n" for line in [start, *self._whole]), encoding="utf-8")
        self._marks = self._progress.open("a", encoding="utf-8")

    def _lock(self) -> None:
        """Two runs would write into each other's pieces. The lock goes with the process, however that ends."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._pieces, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = self.partial.exists() and os.path.samestat(os.fstat(self._pieces.fileno()), self.partial.stat())
        except BlockingIOError:
            held = False
        if not held:  # or another run has just ended, and removed it
            raise FileExistsError(f"{self.partial} is being written by another run")

    def _resume(self, wanted: dict[str, Any]) -> int:
        """Where the pieces of the last whole mark end."""
        marks = []
        for line in self._progress.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                marks.append(json.loads(line))
            except ValueError:  # cut off in writing
                break
        size = self.partial.stat().st_size
        whole = [mark for mark in marks[1:] if mark["bytes"] <= size]
        if not whole:
            return 0
        before = marks[0]["settings"]
        if before != wanted:
            other = [key for key in sorted({*before, *wanted}) if before.get(key) != wanted.get(key)]
            named = "; ".join(f"{key} {before.get(key)!r}, now {wanted.get(key)!r}" for key in other)
            raise FileExistsError(
                f"{self.partial} is from an unfinished run with other settings ({_shortened(named)}); finish that run, "
                "or start anew with --overwrite"
            )
        self.found = marks[0]["notes"]
        self._whole, self.marks = whole, [mark["mark"] for mark in whole]
        self.mark = self.marks[-1]
        return int(whole[-1]["bytes"])

    def append(self, piece: bytes, mark: Mapping[str, Any]) -> None:
        """Add a piece and say how far the work has come; both are on the disk when this returns."""
        self._add(piece)
        self.set_mark(mark)

    def write(self, piece: bytes) -> None:
        """Add a piece. It stays where this run ends, but the run that continues cuts it off unless a mark follows."""
        self._unmarked = True
        self._add(piece)

    def _add(self, piece: bytes) -> None:
        with named(self.partial):
            self._pieces.write(piece)
            self._pieces.flush()

    def set_mark(self, mark: Mapping[str, Any]) -> None:
        """Say how far the work has come with all pieces so far; they and the mark are on the disk when this returns."""
        self._sync()
        with named(self._progress):
            self._marks.write(json.dumps({"bytes": self._pieces.tell(), "mark": dict(mark)}) + "\n")
            self._marks.flush()
        self.mark = dict(mark)

    def finish(self, convert: Callable[[Path, Path], None] | None = None) -> None:
        """Everything is done: the result gets its name, the rest is removed.

        Args:
            convert: writes the result to its second argument from the pieces in its first; else they are the result.
        """
        self._sync()
        if fcntl is None:  # Windows renames no open file; elsewhere it stays locked until everything is in place
            self._close()
        if convert is None:
            os.replace(self.partial, self.path)
        else:
            with named(self.path), replace_atomically(self.path) as whole:
                convert(self.partial, whole)
            self.partial.unlink()
        self._progress.unlink()
        self._done = True
        self._close()

    def discard(self) -> None:
        """Everything is done and the results are elsewhere: nothing of this file stays."""
        if fcntl is None:
            self._close()
        self.partial.unlink()
        self._progress.unlink()
        self._done = True
        self._close()

    def _sync(self) -> None:
        if not self._pieces.closed:
            with named(self.partial):
                self._pieces.flush()
                os.fsync(self._pieces.fileno())

    def _close(self) -> None:
        for file in (self._pieces, self._marks):
            with suppress(OSError):  # of what could not be written before; the lock goes all the same
                file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is unfinished stays for the next run, if it is anything at all."""
        if self._done:
            return
        try:
            self._sync()
        except OSError:
            if error is None:
                raise
            # A full disk was said already; what did not fit has no mark.
        finally:
            self._close()
        if self.mark is None and not self._unmarked:
            self.partial.unlink(missing_ok=True)
            self._progress.unlink(missing_ok=True)


class Journal:
    """Lines of JSON, finished item by item: a Spool whose marks are the items.

    The lines of an item that was not finished are dropped by the next run. Leaving the `with` block without an error
    gives the file its name.

    Args, Raises:
        See `Spool`.

    Attributes:
        finished: the items whose lines are complete, of the unfinished run that is continued too.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self._spool = Spool(path, settings, overwrite)
        self.finished: set[str] = {mark["item"] for mark in self._spool.marks}

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines of the item at work. They reach the disk, but count once the item is finished."""
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        self._spool.write(text.encode())

    def finish(self, item: str) -> None:
        """The lines of `item` are complete."""
        self._spool.set_mark({"item": item})
        self.finished.add(item)

    def close(self) -> None:
        """Everything is done: the file gets its name."""
        self._spool.finish()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self._spool.__exit__(kind, error, trace)


def check_new(paths: Iterable[Path]) -> None:
    """Raises FileExistsError for a result that is there already."""
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists; --overwrite replaces it")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An error of the system that names no file, such as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _shortened(words: str, longest: int = 300) -> str:
    return words if len(words) <= longest else words[:longest] + "..."
