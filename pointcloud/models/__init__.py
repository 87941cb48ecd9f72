"""Networks on sparse voxels."""

from pointcloud.models.minkunet import MinkUNet

__all__ = ["MinkUNet"]
