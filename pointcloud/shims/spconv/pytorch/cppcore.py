"""spconv.pytorch.cppcore: bridges to compiled code, all refused."""

from pointcloud.shims.spconv.constants import AllocKeys
from pointcloud.shims.spconv.cppconstants import COMPILED_CUDA_ARCHS
from pointcloud.shims.spconv.refusal import refuse

refuse(
    globals(),
    "CompileInfo ExternalAllocator ExternalSpconvMatmul TorchAllocator TorchSpconvMatmul get_arch get_current_stream "
    "torch_tensor_to_tv torch_tensors_to_tv",
    "it bridges torch to spconv's compiled code, of which there is none",
)

__all__ = ["COMPILED_CUDA_ARCHS", "AllocKeys"]
