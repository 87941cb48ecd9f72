"""spconv.pytorch.identity."""

from pointcloud.modules import Identity

__all__ = ["Identity"]
