"""Sparse convolution on point clouds, with spconv's names: `import pointcloud as spconv` runs existing model code."""

from common_models.acceleration import restore
from pointcloud import conv, functional, models, modules, pool
from pointcloud.accelerate import Acceleration, accelerate
from pointcloud.agreement import Agreement, compare
from pointcloud.checkpoints import convert_optimizer_state, convert_state_dict, load_checkpoint
from pointcloud.conv import (
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseConv4d,
    SparseConvolution,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseConvTranspose3d,
    SparseConvTranspose4d,
    SparseInverseConv1d,
    SparseInverseConv2d,
    SparseInverseConv3d,
    SparseInverseConv4d,
    SubMConv1d,
    SubMConv2d,
    SubMConv3d,
    SubMConv4d,
)
from pointcloud.functional import sparse_add
from pointcloud.io import read_points, write_ply
from pointcloud.modules import (
    AddTable,
    ConcatTable,
    Identity,
    JoinTable,
    RemoveGrid,
    SparseBatchNorm,
    SparseIdentity,
    SparseModule,
    SparseReLU,
    SparseSequential,
    SparseSyncBatchNorm,
    ToDense,
    is_spconv_module,
)
from pointcloud.norms import SparseGroupNorm, SparseInstanceNorm
from pointcloud.offsets import SparseOffsetConv, kernel_offsets
from pointcloud.picture import draw_labels
from pointcloud.points import PointCloud
from pointcloud.pool import (
    SparseAvgPool1d,
    SparseAvgPool2d,
    SparseAvgPool3d,
    SparseAvgPool4d,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseMaxPool1d,
    SparseMaxPool2d,
    SparseMaxPool3d,
    SparseMaxPool4d,
)
from pointcloud.pretrained import ModelCard, list_pretrained, load_pretrained, save_pretrained
from pointcloud.segment import Segmentation, Segmenter
from pointcloud.sets import Grid, grid_of, intersect, prune, unite
from pointcloud.spconv_weights import convert_weight
from pointcloud.stream import Stream, StreamState
from pointcloud.tensor import ConvAlgo, SparseConvTensor
from pointcloud.tiles import Chunked, chunked
from pointcloud.voxels import PointToVoxel, VoxelGrid, devoxelize, voxelize

__all__ = [
    "Acceleration",
    "AddTable",
    "Agreement",
    "Chunked",
    "ConcatTable",
    "ConvAlgo",
    "Grid",
    "Identity",
    "JoinTable",
    "ModelCard",
    "PointCloud",
    "PointToVoxel",
    "RemoveGrid",
    "Segmentation",
    "Segmenter",
    "SparseAvgPool1d",
    "SparseAvgPool2d",
    "SparseAvgPool3d",
    "SparseAvgPool4d",
    "SparseBatchNorm",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConv4d",
    "SparseConvTensor",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseConvTranspose3d",
    "SparseConvTranspose4d",
    "SparseConvolution",
    "SparseGlobalAvgPool",
    "SparseGlobalMaxPool",
    "SparseGroupNorm",
    "SparseIdentity",
    "SparseInstanceNorm",
    "SparseInverseConv1d",
    "SparseInverseConv2d",
    "SparseInverseConv3d",
    "SparseInverseConv4d",
    "SparseMaxPool1d",
    "SparseMaxPool2d",
    "SparseMaxPool3d",
    "SparseMaxPool4d",
    "SparseModule",
    "SparseOffsetConv",
    "SparseReLU",
    "SparseSequential",
    "SparseSyncBatchNorm",
    "Stream",
    "StreamState",
    "SubMConv1d",
    "SubMConv2d",
    "SubMConv3d",
    "SubMConv4d",
    "ToDense",
    "VoxelGrid",
    "accelerate",
    "chunked",
    "compare",
    "conv",
    "convert_optimizer_state",
    "convert_state_dict",
    "convert_weight",
    "devoxelize",
    "draw_labels",
    "functional",
    "grid_of",
    "intersect",
    "is_spconv_module",
    "kernel_offsets",
    "list_pretrained",
    "load_checkpoint",
    "load_pretrained",
    "models",
    "modules",
    "pool",
    "prune",
    "read_points",
    "restore",
    "save_pretrained",
    "sparse_add",
    "unite",
    "voxelize",
    "write_ply",
]
