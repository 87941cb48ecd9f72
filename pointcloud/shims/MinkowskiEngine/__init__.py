"""MinkowskiEngine 0.5's tensors and layers, as far as sparse U-Nets and ResNets call them, on any processor."""

from pointcloud.shims.MinkowskiEngine import MinkowskiFunctional, modules, utils
from pointcloud.shims.MinkowskiEngine.convolution import MinkowskiConvolution, MinkowskiConvolutionTranspose
from pointcloud.shims.MinkowskiEngine.pointwise import (
    MinkowskiBatchNorm,
    MinkowskiDropout,
    MinkowskiELU,
    MinkowskiGELU,
    MinkowskiInstanceNorm,
    MinkowskiLeakyReLU,
    MinkowskiLinear,
    MinkowskiReLU,
    MinkowskiSigmoid,
    MinkowskiSiLU,
    MinkowskiSinusoidal,
    MinkowskiSyncBatchNorm,
    MinkowskiTanh,
    MinkowskiToSparseTensor,
)
from pointcloud.shims.MinkowskiEngine.pooling import (
    MinkowskiAvgPooling,
    MinkowskiGlobalAvgPooling,
    MinkowskiGlobalMaxPooling,
    MinkowskiGlobalPooling,
    MinkowskiGlobalSumPooling,
    MinkowskiMaxPooling,
    MinkowskiSumPooling,
)
from pointcloud.shims.MinkowskiEngine.rows import MinkowskiNetwork, MinkowskiPruning, MinkowskiUnion, cat
from pointcloud.shims.MinkowskiEngine.tensor import (
    CoordinateManager,
    SparseTensor,
    SparseTensorQuantizationMode,
    TensorField,
)

__version__ = "0.5.4+trisparse"

__all__ = [
    "CoordinateManager",
    "MinkowskiAvgPooling",
    "MinkowskiBatchNorm",
    "MinkowskiConvolution",
    "MinkowskiConvolutionTranspose",
    "MinkowskiDropout",
    "MinkowskiELU",
    "MinkowskiFunctional",
    "MinkowskiGELU",
    "MinkowskiGlobalAvgPooling",
    "MinkowskiGlobalMaxPooling",
    "MinkowskiGlobalPooling",
    "MinkowskiGlobalSumPooling",
    "MinkowskiInstanceNorm",
    "MinkowskiLeakyReLU",
    "MinkowskiLinear",
    "MinkowskiMaxPooling",
    "MinkowskiNetwork",
    "MinkowskiPruning",
    "MinkowskiReLU",
    "MinkowskiSiLU",
    "MinkowskiSigmoid",
    "MinkowskiSinusoidal",
    "MinkowskiSumPooling",
    "MinkowskiSyncBatchNorm",
    "MinkowskiTanh",
    "MinkowskiToSparseTensor",
    "MinkowskiUnion",
    "SparseTensor",
    "SparseTensorQuantizationMode",
    "TensorField",
    "__version__",
    "cat",
    "modules",
    "utils",
]
