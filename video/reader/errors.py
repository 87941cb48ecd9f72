"""The error of a video that cannot give what was asked for."""

from __future__ import annotations


class VideoError(ValueError):
    """A video that cannot be read as asked: the text names the source, and the frame where one failed."""
