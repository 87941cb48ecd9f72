"""Reading of video files and live streams, in which frame i is frame i."""

from video.reader.errors import VideoError
from video.reader.frame import Frame
from video.reader.index import FrameIndex
from video.reader.reader import PacketTable, VideoReader

__all__ = ["Frame", "FrameIndex", "PacketTable", "VideoError", "VideoReader"]
