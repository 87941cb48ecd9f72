"""Which frames are worth computing: policies with one interface, a pipeline that obeys them, thresholds from video."""

from video.skip.calibration import Calibration, calibrate
from video.skip.gate import LearnedGate
from video.skip.observation import Observation, observe
from video.skip.pipeline import FrameResult, run
from video.skip.policies import Confidence, EveryNth, KeyFrames, LumaDifference, MotionVectors, PacketSize
from video.skip.policy import Decision, Policy, PolicyState
from video.skip.signals import Signals
from video.skip.timeline import draw_timeline
from video.skip.trace import Trace, TraceEntry

__all__ = [
    "Calibration",
    "Confidence",
    "Decision",
    "EveryNth",
    "FrameResult",
    "KeyFrames",
    "LearnedGate",
    "LumaDifference",
    "MotionVectors",
    "Observation",
    "PacketSize",
    "Policy",
    "PolicyState",
    "Signals",
    "Trace",
    "TraceEntry",
    "calibrate",
    "draw_timeline",
    "observe",
    "run",
]
