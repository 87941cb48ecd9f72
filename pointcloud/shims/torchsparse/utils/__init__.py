"""Small helpers of models and data loaders."""

from pointcloud.shims.torchsparse.utils.to_dense import to_dense
from pointcloud.shims.torchsparse.utils.utils import make_divisible, make_ntuple, make_tensor

__all__ = ["make_divisible", "make_ntuple", "make_tensor", "to_dense"]
