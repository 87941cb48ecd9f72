"""Reading point clouds of every common format, and writing PLY."""

from pointcloud.io.read import FORMATS, SUFFIXES, read_points
from pointcloud.io.write import write_ply

__all__ = ["FORMATS", "SUFFIXES", "read_points", "write_ply"]
