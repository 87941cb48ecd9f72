"""Clouds that do not fit into memory: run tile by tile, with the answers of the whole."""

from pointcloud.tiles.run import Chunked, chunked

__all__ = ["Chunked", "chunked"]
