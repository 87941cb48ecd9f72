"""Samples to batches."""

import numpy as np
import torch

from pointcloud.shims.torchsparse import SparseTensor
from pointcloud.shims.torchsparse.utils.collate import sparse_collate_fn


def test_dictionaries() -> None:
    samples = [
        {"x": SparseTensor(torch.ones(n, 2), torch.ones(n, 3).int()), "y": np.arange(3), "name": str(n)} for n in (1, 2)
    ]
    batch = sparse_collate_fn(samples)
    assert batch["x"].C.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert batch["y"].shape == (2, 3) and batch["name"] == ["1", "2"]
