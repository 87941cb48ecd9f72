"""A pool's update against torch's pools in float64, and pixel by pixel against itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common_kernels.pool_update import pool_update

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
POOLS = [
    dict(kind="max", kernel_size=3, stride=2, padding=1), dict(kind="max", kernel_size=3, stride=2, ceil_mode=True),
    dict(kind="max", kernel_size=2), dict(kind="max", kernel_size=3, stride=1, padding=1, dilation=2),
    dict(kind="avg", kernel_size=3, stride=2, padding=1), dict(kind="avg", kernel_size=2, ceil_mode=True),
    dict(kind="avg", kernel_size=3, stride=2, padding=1, ceil_mode=True),
    dict(kind="avg", kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    dict(kind="avg", kernel_size=(2, 3), stride=(3, 2), padding=(1, 0), divisor_override=5),
]  # fmt: skip


def right(x: Tensor, kind: str, **options: object) -> Tensor:
    pool = F.max_pool2d if kind == "max" else F.avg_pool2d
    return pool(x.double().permute(0, 3, 1, 2), **options).permute(0, 2, 3, 1)


def close(got: Tensor, expected: Tensor) -> bool:
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}[got.dtype]
    return torch.allclose(got.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: ",".join(f"{k}={v}" for k, v in pool.items()))
def test_update(pool: dict, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(2, 14, 17, 20).to(device, dtype)
    x[0, 9, 4, 2], x[1, 0, 0, 5] = float("nan"), float("inf")
    out = torch.full(right(x, **pool).shape, 77.0, dtype=dtype, device=device)
    assert pool_update(x, None, out, **pool).all()
    assert close(out, right(x, **pool))
    changed = torch.zeros(2, 14, 17, dtype=torch.bool, device=device)
    changed[1, 4:6, 7] = True
    x[changed] += 3
    kept = out.clone()
    moved = pool_update(x, changed, out, **pool)
    assert close(out, right(x, **pool))
    differs = ((out != kept) & ~(out.isnan() & kept.isnan())).any(-1)
    assert torch.equal(moved, differs) and moved.any() and not moved[0].any()


def test_threshold_and_untouched_pixels() -> None:
    x = torch.ones(1, 8, 8, 4)
    out = torch.full((1, 4, 4, 4), 0.75)
    assert not pool_update(x, None, out, kind="max", kernel_size=2, threshold=0.25).any()
    changed = torch.zeros(1, 8, 8, dtype=torch.bool)
    changed[0, 2, 2] = True
    assert pool_update(x, changed, out, kind="max", kernel_size=2).sum() == 1
    assert (out == 1).sum() == 4


def test_empty() -> None:
    assert pool_update(torch.zeros(0, 8, 8, 4), None, torch.zeros(0, 4, 4, 4), kind="max", kernel_size=2).numel() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "min"}, "kind must be one of"),
        ({"padding": 2}, "padding must be at most half"),
        ({"kind": "avg", "dilation": 2}, "dilation belongs to max"),
        ({"count_include_pad": False}, "belong to average pooling"),
        ({"kind": "avg", "divisor_override": 0}, "divisor_override must not be 0"),
        ({"x": torch.zeros(1, 8, 8)}, "x must be contiguous"),
        ({"out": torch.zeros(1, 4, 4, 3)}, r"out must be contiguous \[1, 4, 4, 4\]"),
        ({"changed": torch.zeros(1, 4, 4, dtype=torch.bool)}, r"changed must be bool \[1, 8, 8\]"),
        ({"threshold": -1}, "threshold must be at least 0"),
    ],
    ids=str,
)
def test_bad_input(change: dict, message: str) -> None:
    given = {"x": torch.zeros(1, 8, 8, 4), "changed": None, "out": torch.zeros(1, 4, 4, 4), "kind": "max", **change}
    with pytest.raises(ValueError, match=message):
        pool_update(kernel_size=2, **given)
