"""Compute only what changes: a sparse network on the clouds of a sensor that stands still."""

from pointcloud.stream.network import Stream
from pointcloud.stream.state import StreamState
from pointcloud.stream.work import Work

__all__ = ["Stream", "StreamState", "Work"]
