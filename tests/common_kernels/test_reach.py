"""A mask's reach against max pooling and against convolution with ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common_kernels.reach import reach, reference
from common_kernels.windows import Window

WINDOWS = [(3, 1, 1, 1), (3, 2, 1, 1), (7, 2, 3, 1), ((1, 5), (3, 1), (0, 4), (1, 2)), (2, 2, 0, 1), (1, 2, 0, 1),
           (1, 1, 0, 1), (3, 1, 5, 3)]  # fmt: skip


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_reach(window: tuple, density: float, device: str) -> None:
    mask = torch.rand(3, 21, 37) < density
    kernel = window[0] if isinstance(window[0], tuple) else (window[0], window[0])
    touched = F.conv2d(mask[:, None].double(), torch.ones(1, 1, *kernel).double(), None, *window[1:])[:, 0] > 0
    assert torch.equal(reach(mask.to(device), *window).cpu(), touched)
    assert torch.equal(reference.reach(mask, Window.of(*window)), touched)


@pytest.mark.parametrize("size", [(9, 9), (10, 7), (4, 11)], ids=str)
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (2, 3, 1), (3, 4, 1)], ids=str)
def test_ceil_mode(window: tuple, size: tuple, device: str) -> None:
    mask = torch.rand(2, *size) < 0.1
    pooled = F.max_pool2d(mask[:, None].float(), *window, ceil_mode=True)[:, 0] > 0
    assert torch.equal(reach(mask.to(device), *window, ceil_mode=True).cpu(), pooled)


def test_fresh_result_and_empty() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    reach(mask, 1)[:] = True
    assert not mask.any()
    assert reach(torch.zeros(0, 4, 4, dtype=torch.bool), 3, 1, 1).shape == (0, 4, 4)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"changed must be bool \[B, H, W\]"):
        reach(torch.zeros(1, 4, 4), 3)
    with pytest.raises(ValueError, match="kernel_size must be"):
        reach(torch.zeros(1, 4, 4, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="x must be at least as large"):
        reach(torch.zeros(1, 2, 2, dtype=torch.bool), 3)
