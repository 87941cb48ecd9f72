"""torchsparse's functions."""

from pointcloud.shims.torchsparse.nn.functional.conv import conv3d, spdownsample
from pointcloud.shims.torchsparse.nn.functional.devoxelize import calc_ti_weights, spdevoxelize
from pointcloud.shims.torchsparse.nn.functional.features import (
    global_avg_pool,
    global_max_pool,
    leaky_relu,
    relu,
    silu,
    spcrop,
)
from pointcloud.shims.torchsparse.nn.functional.hash import spcount, sphash, sphashquery
from pointcloud.shims.torchsparse.nn.functional.modes import (
    get_conv_mode,
    get_downsample_mode,
    get_kmap_mode,
    set_conv_mode,
    set_downsample_mode,
    set_kmap_mode,
)
from pointcloud.shims.torchsparse.nn.functional.voxelize import spvoxelize

__all__ = [
    "calc_ti_weights",
    "conv3d",
    "get_conv_mode",
    "get_downsample_mode",
    "get_kmap_mode",
    "global_avg_pool",
    "global_max_pool",
    "leaky_relu",
    "relu",
    "set_conv_mode",
    "set_downsample_mode",
    "set_kmap_mode",
    "silu",
    "spcount",
    "spcrop",
    "spdevoxelize",
    "spdownsample",
    "sphash",
    "sphashquery",
    "spvoxelize",
]
