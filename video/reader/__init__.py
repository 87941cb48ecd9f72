"""Reading of video files and live streams, in which frame i is frame i."""

from video.reader.errors import VideoError
from video.reader.frame import Frame
from video.reader.index import FrameIndex
from video.reader.live import LiveSource, open_live
from video.reader.reader import PacketTable, VideoReader

__all__ = ["Frame", "FrameIndex", "LiveSource", "PacketTable", "VideoError", "VideoReader", "open_live"]
