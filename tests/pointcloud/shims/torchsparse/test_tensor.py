"""The tensor's names."""

import pytest
import torch

from pointcloud.shims.torchsparse import PointTensor, SparseTensor
from pointcloud.shims.torchsparse.utils import tensor_cache


def test_names_and_dense() -> None:
    x = SparseTensor(torch.tensor([[3.0]]), torch.tensor([[0, 1, 0, 2]], dtype=torch.int32), 2, (1, 2, 2, 3))
    assert x.F is x.feats and x.C is x.coords and x.s == (2, 2, 2)
    assert x.dense().nonzero().tolist() == [[0, 1, 0, 2, 0]]
    x.F = x.F * 2
    assert x.half().feats.dtype == torch.float16 and x.cpu() is x
    with pytest.raises(ValueError, match="spatial_range must be given"):
        SparseTensor(x.F, x.C).dense()
    points = PointTensor(x.F, x.C.float())
    assert torch.equal((points + points).F, x.F * 2)


def test_one_cache_for_all() -> None:
    tensor_cache.set_tensor_cache_mode(tensor_cache.TensorCacheMode.GLOBAL_TENSOR_CACHE)
    try:
        make = lambda: SparseTensor(torch.zeros(1, 1), torch.zeros(1, 4).int())  # noqa: E731
        assert make()._caches is make()._caches
    finally:
        tensor_cache.set_tensor_cache_mode(tensor_cache.TensorCacheMode.SEPARATE_TENSOR_CACHE)
        tensor_cache.clear_global_tensor_cache()
