"""Which files of text a command is to read, and in which format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trisparse.output.sinks import require_pyarrow

FORMATS = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
NAMES = ("txt", "csv", "tsv", "jsonl", "parquet")
STDIN = "-"


@dataclass(frozen=True)
class Source:
    """One file of text.

    Attributes:
        name: as the user wrote it; - for what is piped in.
        format: one of NAMES.
        gzipped: whether its name ends in .gz.
    """

    name: str
    format: str
    gzipped: bool = False

    @property
    def has_columns(self) -> bool:
        return self.format != "txt"

    def fingerprint(self) -> list[int] | None:
        """Size and time of the last change; None for a pipe."""
        path = Path(self.name)
        if self.name == STDIN or not path.is_file():
            return None
        found = path.stat()
        return [found.st_size, found.st_mtime_ns]


def plan(names: Sequence[str], format: str | None = None, output: Path | None = None) -> list[Source]:
    """The files to read, folders replaced by the files of text in them.

    Args:
        format: of files whose names do not tell, and of what is piped in (txt by default).
        output: what will be written; it is not read, though it lies in one of the folders.

    Raises:
        ValueError: a folder without text, a file of an unknown format, a file named twice, an output among the inputs.
        FileNotFoundError: a file that does not exist.
        ImportError: parquet without pyarrow.
    """
    if format is not None and format not in NAMES:
        raise ValueError(f"--format must be one of {', '.join(NAMES)}, got {format!r}")
    found: list[Source] = []
    for name in names:
        if name != STDIN and Path(name).is_dir():
            if format is not None:
                raise ValueError(
                    f"{name}: --format is for files and pipes; the files of a folder are read by their suffixes"
                )
            found += _in_folder(Path(name), output)
        else:
            found.append(_source(name, format))
            if name != STDIN and output is not None and output.exists() and output.samefile(name):
                raise ValueError(f"{output}: the output would overwrite the text it comes from")
    seen: dict[str, str] = {}
    for source in found:
        real = source.name if source.name == STDIN else os.path.realpath(source.name)
        if real in seen:
            also = f", also as {seen[real]}" if seen[real] != source.name else ""
            raise ValueError(f"{source.name} was named twice{also}")
        seen[real] = source.name
    if any(source.format == "parquet" for source in found):
        require_pyarrow("reading parquet files")
    return found


def _format_of(name: str) -> tuple[str | None, bool]:
    lower = name.lower()
    gzipped = lower.endswith(".gz")
    return FORMATS.get(os.path.splitext(lower[:-3] if gzipped else lower)[1]), gzipped


def _source(name: str, format: str | None) -> Source:
    if name == STDIN:
        if format == "parquet":
            raise ValueError("parquet cannot be piped in, because its end is read first: give the file's name")
        return Source(name, format or "txt")
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file")
    told, gzipped = _format_of(name)
    chosen = format or told
    if chosen is None:
        known = " ".join(FORMATS)
        raise ValueError(
            f"{name}: unknown suffix, expected one of {known} (.gz may follow); for another suffix add --format"
        )
    if chosen == "parquet" and (gzipped or not path.is_file()):
        raise ValueError(f"{name}: parquet must be a plain file, since it compresses its columns itself")
    return Source(name, chosen, gzipped)


def _in_folder(folder: Path, output: Path | None) -> list[Source]:
    found = []
    for root, folders, names in os.walk(folder):
        # What an unfinished run keeps is nothing to read.
        folders[:] = [name for name in folders if not name.endswith(".partial")]
        for name in names:
            path = os.path.join(root, name)
            told, gzipped = _format_of(name)
            if told is None or (gzipped and told == "parquet") or not os.path.isfile(path):
                continue
            if output is not None and output.exists() and output.samefile(path):
                continue
            found.append(Source(path, told, gzipped))
    if not found:
        raise ValueError(f"{folder}: no text in this folder; expected files with a suffix of {' '.join(FORMATS)}")
    # Of a file and links to it one is read, the file where it has a name that tells.
    found.sort(key=lambda source: (os.path.islink(source.name), source.name))
    once = {os.path.realpath(source.name): source for source in reversed(found)}
    return sorted(once.values(), key=lambda source: source.name)
