"""A weight that is packed once gives what it gives when it is packed in each call."""

from __future__ import annotations

import pytest
import torch

from common_kernels import gather_gemm, kernel_map
from common_kernels.gather_gemm import packed


def a_map() -> tuple[torch.Tensor, object]:
    generator = torch.Generator().manual_seed(0)
    coords = torch.unique(torch.randint(0, 9, (400, 3), generator=generator, dtype=torch.int32), dim=0)
    coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.int32), coords], 1)
    return coords, kernel_map(coords, (9, 9, 9), 3, batch_size=1, kind="submanifold")


@pytest.mark.parametrize("channels", [(1, 1), (7, 20), (32, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_unpacked(dtype: torch.dtype, channels: tuple[int, int]) -> None:
    coords, map = a_map()
    c_in, c_out = channels
    x, weight = torch.randn(len(coords), c_in).to(dtype), torch.randn(27, c_in, c_out).to(dtype)
    bias, residual = torch.randn(c_out).to(dtype), torch.randn(len(coords), c_out).to(dtype)
    if not packed.can_pack(weight):
        with pytest.raises(ValueError, match="weight must be"):
            packed.pack_taps(weight)
        return
    taps = packed.pack_taps(weight)
    for epilogue in ((), (bias,), (bias, residual, "relu")):
        assert torch.equal(packed.gather_gemm_packed(x, map, taps, *epilogue), gather_gemm(x, map, weight, *epilogue))
    before = packed.gather_gemm_packed(x, map, taps)
    weight.zero_()
    assert torch.equal(packed.gather_gemm_packed(x, map, taps), before)


def test_what_is_refused() -> None:
    coords, map = a_map()
    x, weight = torch.randn(len(coords), 4), torch.randn(27, 4, 5)
    taps = packed.pack_taps(weight)
    assert not packed.can_pack(weight.double()) and not packed.can_pack(weight.half())
    with pytest.raises(ValueError, match=r"weight must be fp32 or bf16 \[K, Cin, Cout\].*got float64 \[27, 4, 5\]"):
        packed.pack_taps(weight.double())
    with pytest.raises(ValueError, match=r"x must be float32 \[\d+, 4\] on the CPU, got float64"):
        packed.gather_gemm_packed(x.double(), map, taps)
    with pytest.raises(ValueError, match="x must be"):
        packed.gather_gemm_packed(x[1:], map, taps)
    with pytest.raises(ValueError, match="map must have the weight's 8 taps"):
        packed.gather_gemm_packed(x, map, packed.pack_taps(weight[:8]))
    with pytest.raises(ValueError, match=r"bias must be float32 \[5\]"):
        packed.gather_gemm_packed(x, map, taps, torch.zeros(4))
    with pytest.raises(ValueError, match=r"residual must be float32"):
        packed.gather_gemm_packed(x, map, taps, None, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="activation must be one of none, relu, got 'gelu'"):
        packed.gather_gemm_packed(x, map, taps, activation="gelu")
