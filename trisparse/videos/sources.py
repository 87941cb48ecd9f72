"""Which videos and cameras a command is to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv", ".mts",
    ".m2ts",
)  # fmt: skip
STDIN = "-"


@dataclass(frozen=True)
class Source:
    """A video file or a camera.

    Attributes:
        place: path, device or address, as the user wrote it; - for what is piped in.
        is_camera: whether it has no end to look at first: a device, a pipe or an address.
    """

    place: str
    is_camera: bool

    @classmethod
    def of(cls, place: str) -> Source:
        """The source at a place, looked at once: a file that comes into being later is still what it is now."""
        if "://" in place or place == STDIN:
            return cls(place, True)
        path = Path(place)
        return cls(place, path.exists() and not path.is_file() and not path.is_dir())

    @property
    def name(self) -> str:
        """The last part of its place."""
        return Path(self.place).name

    @property
    def path(self) -> Path:
        """Its place as a path; that of an address or of a pipe does not exist."""
        return Path(self.place)


def plan(places: Sequence[str]) -> list[Source]:
    """The sources at these places, folders replaced by the videos in them.

    Raises:
        ValueError: a folder without videos, a camera together with others, a source named twice.
        FileNotFoundError: a video that does not exist.
    """
    found: list[Source] = []
    for place in places:
        found += _videos_in(Path(place)) if Path(place).is_dir() else [Source.of(place)]
    camera = next((source for source in found if source.is_camera), None)
    if camera is not None and len(found) > 1:
        raise ValueError(f"{camera.place} has no end of its own: give it alone, got {len(found)} sources")
    seen: set[str] = set()
    for source in found:
        if source.place in seen:
            raise ValueError(f"{source.place} was named twice")
        seen.add(source.place)
        if not source.is_camera and not source.path.is_file():
            raise FileNotFoundError(f"{source.place}: no such video")
    return found


def _videos_in(folder: Path) -> list[Source]:
    found = sorted(
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )
    if not found:
        raise ValueError(f"{folder}: no videos in this folder; expected files with a suffix of {' '.join(SUFFIXES)}")
    return [Source(place, False) for place in found]
