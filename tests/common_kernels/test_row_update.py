"""Row updates against their definition written as loops over numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common_kernels.row_update import update_rows

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]


def expected(out: Tensor, rows: Tensor, threshold: float) -> list[bool]:
    pairs = zip(out.view(-1, out.shape[-1]).tolist(), rows.view(-1, out.shape[-1]).tolist())
    return [any(not (a == b or math.fabs(a - b) <= threshold) for a, b in zip(old, new)) for old, new in pairs]


def values(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Kept and new rows: some equal, some near (by 1), some far (by 5)."""
    old = torch.randint(20, 90, shape)
    step = torch.randint(0, 3, (*shape[:-1], 1)) * (torch.rand(shape) < 0.2)
    return old.to(dtype), (old + torch.tensor([0, 1, 5])[step]).to(dtype)


@pytest.mark.parametrize("threshold", [0, 2.0, math.inf])
@pytest.mark.parametrize("channels", [1, 3, 21, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_rows(dtype: torch.dtype, channels: int, threshold: float, device: str) -> None:
    old, new = values(3, 11, 13, channels, dtype=dtype)
    out = old.clone().to(device)
    changed = update_rows(out, new.to(device), threshold=threshold).cpu()
    assert changed.shape == (3, 11, 13) and changed.flatten().tolist() == expected(old, new, threshold)
    assert torch.equal(out.cpu(), torch.where(changed[..., None], new, old))


@pytest.mark.parametrize("form", ["mask", "int32", "int64"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_some_rows(dtype: torch.dtype, form: str, device: str) -> None:
    old, new = values(4, 9, 5, 20, dtype=dtype)
    mask = torch.rand(4, 9, 5) < 0.3
    rows, index = new, mask
    if form != "mask":
        index = torch.nonzero(mask.flatten()).squeeze(1).flip(0).to(getattr(torch, form))
        rows = new.view(-1, 20)[index]
    out = old.clone().to(device)
    changed = update_rows(out, rows.to(device), index.to(device), threshold=2).cpu()
    right = torch.tensor(expected(old, new, 2)).view(4, 9, 5) & mask
    assert torch.equal(changed, right)
    assert torch.equal(out.cpu(), torch.where(right[..., None], new, old))


def test_large_still_frame_with_one_change() -> None:
    out = torch.randint(0, 255, (1, 240, 320, 3), dtype=torch.uint8)
    new = out.clone()
    new[0, 239, 319, 2] ^= 1
    changed = update_rows(out, new)
    assert changed.sum() == 1 and changed[0, 239, 319] and torch.equal(out, new)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_infinity_and_zero(dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    out = torch.tensor([[nan], [1], [nan], [inf], [inf], [0.0]]).to(dtype)
    new = torch.tensor([[nan], [nan], [1], [inf], [-inf], [-0.0]]).to(dtype)
    assert update_rows(out, new).tolist() == [True, True, True, False, True, False]
    assert not out[5].signbit()


def test_gpu_leaves_out_rows_that_are_not_there(kernel_device: str) -> None:
    from common_kernels.row_update import gpu

    out = torch.zeros(4, 3, device=kernel_device)
    index = torch.tensor([2**31, 1, -9], device=kernel_device)
    assert gpu.update_rows(out, torch.ones(3, 3, device=kernel_device), index, 0.0).tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert out.sum().item() == 3 and out[1].sum().item() == 3


def test_misaligned_mask() -> None:
    mask = torch.zeros(41, dtype=torch.bool)
    mask[[1, 9, 40]] = True
    assert update_rows(torch.zeros(40, 2), torch.ones(40, 2), mask[1:]).nonzero().flatten().tolist() == [0, 8, 39]


def test_empty() -> None:
    assert update_rows(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
    assert update_rows(torch.zeros(5, 0), torch.zeros(5, 0)).tolist() == [False] * 5
    assert not update_rows(torch.zeros(5, 2), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": torch.zeros(3, 2, dtype=torch.int32)}, "out must be contiguous"),
        ({"out": torch.zeros(2, 3).T}, "not contiguous"),
        ({"rows": torch.zeros(3, 2, dtype=torch.float64)}, "rows must have out's dtype"),
        ({"rows": torch.zeros(2, 2)}, r"rows must be \[3, 2\]"),
        ({"index": torch.zeros(2, dtype=torch.int64)}, r"rows must be \[2, 2\]"),
        ({"index": torch.zeros(3)}, "index must be int32 or int64"),
        ({"index": torch.zeros(2, dtype=torch.bool)}, "index as a mask must be"),
        ({"index": torch.tensor([0, 1, 3])}, r"index must lie in \[0, 3\)"),
        ({"threshold": -0.5}, "threshold must be at least 0"),
    ],
    ids=str,
)
def test_bad_input(change: dict, message: str) -> None:
    given = {"out": torch.zeros(3, 2), "rows": torch.zeros(3, 2), **change}
    with pytest.raises(ValueError, match=message):
        update_rows(**given)
