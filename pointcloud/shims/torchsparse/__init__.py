"""torchsparse 2.1's tensors, layers and functions on Trisparse's kernels, on any processor."""

from pointcloud.shims.torchsparse import backend, backends, nn, utils
from pointcloud.shims.torchsparse.operators import cat, generative_add
from pointcloud.shims.torchsparse.tensor import PointTensor, SparseTensor

__version__ = "2.1.0+trisparse"

__all__ = [
    "PointTensor",
    "SparseTensor",
    "__version__",
    "backend",
    "backends",
    "cat",
    "generative_add",
    "nn",
    "utils",
]
