"""Reading of video files and live streams, in which frame i is frame i."""

from video.reader.errors import VideoError
from video.reader.index import FrameIndex

__all__ = ["FrameIndex", "VideoError"]
