"""The layers, by kind."""

from pointcloud.shims.torchsparse.nn.modules.conv import Conv3d
from pointcloud.shims.torchsparse.nn.modules.pointwise import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LeakyReLU,
    ReLU,
    SiLU,
)
from pointcloud.shims.torchsparse.nn.modules.pooling import GlobalAvgPool, GlobalMaxPool, SparseCrop

__all__ = [
    "BatchNorm",
    "Conv3d",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "InstanceNorm",
    "LeakyReLU",
    "ReLU",
    "SiLU",
    "SparseCrop",
]
