"""Results as lines of JSON that appear whole: an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """A JSONL file in the making, finished item by item.

    Lines gather in `<path>.partial`. `<path>.progress` says which items are finished, how many bytes their lines take
    and with which settings they were made. A run that finds the two drops the lines of an item that was not finished
    and goes on after the others. `close` renames the lines to `path` and removes the rest; until then an older file of
    that name stays.

    Args:
        settings: whatever the lines depend on, as JSON. An unfinished run with other settings is not continued.
        overwrite: replace a finished file, and start anew over an unfinished one.

    Raises:
        FileExistsError: a finished file of that name, or an unfinished one with other settings.
        OSError: a place that cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path}: a directory, but a file to write was expected")
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._progress = self.path.with_name(self.path.name + ".progress")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path}: its folder {self.path.parent} does not exist")
        wanted = json.loads(json.dumps(settings))  # as it reads back
        self.finished: dict[str, int] = {}
        if not overwrite and self._progress.is_file() and self._partial.is_file():
            self.finished = self._resume(wanted)
        elif self.path.exists() and not overwrite:
            raise FileExistsError(f"{self.path} exists; --overwrite replaces it")
        end = max(self.finished.values(), default=0)
        self._lines = self._partial.open("r+b" if self.finished else "w+b")
        self._lines.truncate(end)
        self._lines.seek(end)
        if not self.finished:
            self._progress.write_text(json.dumps({"settings": wanted}) + "\n", encoding="utf-8")
        self._marks = self._progress.open("a", encoding="utf-8")

    def _resume(self, wanted: Any) -> dict[str, int]:
        """End of the lines of each finished item; a mark or lines that were cut off in writing do not count."""
        marks = []
        for line in self._progress.read_text(encoding="utf-8").splitlines():
            try:
                marks.append(json.loads(line))
            except ValueError:
                break
        if not marks or marks[0].get("settings") != wanted:
            raise FileExistsError(
                f"{self._partial} is from an unfinished run with other settings; finish that run, or start anew with "
                "--overwrite"
            )
        size = self._partial.stat().st_size
        whole = [mark for mark in marks[1:] if mark["bytes"] <= size]
        # Without what was cut off, so that the next mark starts on a line of its own.
        rewritten = self._progress.with_name(self._progress.name + ".new")
        rewritten.write_text("".join(json.dumps(mark) + "\n" for mark in [marks[0], *whole]), encoding="utf-8")
        os.replace(rewritten, self._progress)
        return {mark["item"]: mark["bytes"] for mark in whole}

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines of the item at work. They reach the disk, but count once the item is finished."""
        for line in lines:
            self._lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._lines.flush()

    def finish(self, item: str) -> None:
        """The lines of `item` are complete."""
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self.finished[item] = self._lines.tell()
        self._marks.write(json.dumps({"item": item, "bytes": self.finished[item]}) + "\n")
        self._marks.flush()

    def close(self) -> None:
        """Everything is done: the file gets its name."""
        self._release()
        os.replace(self._partial, self.path)
        self._progress.unlink()

    def _release(self) -> None:
        self._lines.close()
        self._marks.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes where all went well; else the unfinished files stay for the next run."""
        if error is None:
            self.close()
        else:
            self._release()
