"""cumm, as far as data pipelines for spconv call it: arrays in and out of its tensors."""

from pointcloud.shims.cumm import tensorview

__version__ = "0.7.11+trisparse"

__all__ = ["__version__", "tensorview"]
