"""Video models that skip what does not change: exact reading, temporal shift, live streams, frame skipping, deltas."""

from video import checkpoints, delta, models, skip
from video.accelerate import Acceleration, Agreement, accelerate, compare, restore
from video.checkpoints import load_checkpoint
from video.classify import Classifier, ClassScore, FrameAnswer, VideoAnswer
from video.export import export_onnx
from video.models import TSM
from video.preprocess import Preprocess
from video.pretrained import ModelCard, list_pretrained, load_pretrained, save_pretrained
from video.reader import Frame, FrameIndex, PacketTable, VideoError, VideoReader, open_live
from video.sampling import sample_indices
from video.shift import TemporalShift, temporal_shift
from video.shift.insert import Insertion, add_temporal_shift
from video.state import StreamState
from video.stream import LiveNetwork, RecentMean, Stream

__all__ = [
    "TSM",
    "Acceleration",
    "Agreement",
    "ClassScore",
    "Classifier",
    "Frame",
    "FrameAnswer",
    "FrameIndex",
    "Insertion",
    "LiveNetwork",
    "ModelCard",
    "PacketTable",
    "Preprocess",
    "RecentMean",
    "Stream",
    "StreamState",
    "TemporalShift",
    "VideoAnswer",
    "VideoError",
    "VideoReader",
    "accelerate",
    "add_temporal_shift",
    "checkpoints",
    "compare",
    "delta",
    "export_onnx",
    "list_pretrained",
    "load_checkpoint",
    "load_pretrained",
    "models",
    "open_live",
    "restore",
    "sample_indices",
    "save_pretrained",
    "skip",
    "temporal_shift",
]
