"""spconv.pytorch.hash."""

from pointcloud.shims.spconv.refusal import refuse

refuse(
    globals(),
    "HashTable get_current_stream main torch_tensor_to_tv",
    "maps are found by sorting; torch.searchsorted and SparseConvTensor.coalesce do what it is used for",
)
