"""What a gather-GEMM keeps for its backward pass."""

from __future__ import annotations

import pytest
import torch

from common_kernels import gather_gemm
from common_kernels.kernel_map import KernelMap


@pytest.mark.parametrize("weight_trains", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("input_trains", [True, False], ids=["inner", "first"])
def test_only_what_a_gradient_reads_is_kept(weight_trains: bool, input_trains: bool) -> None:
    table = torch.tensor([[0, 1, -1, 3], [1, 2, 3, -1]], dtype=torch.int32)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=input_trains)
    weight = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=weight_trains)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = gather_gemm(x, KernelMap(table, 4, torch.zeros(4, 2, dtype=torch.int32), (4,)), weight, bias)
    assert kept == [(4, 5)] * weight_trains + [(2, 5, 3)] * input_trains
    grad = torch.randn_like(out)
    out.backward(grad)
    padded = torch.cat([x.detach(), torch.zeros(1, 5, dtype=torch.float64)])
    for trains, tensor, expected in (
        (weight_trains, weight, torch.einsum("kmi,mo->kio", padded[table], grad)),
        (True, bias, grad.sum(0)),
        (
            input_trains,
            x,
            torch.zeros(5, 5, dtype=torch.float64).index_add(
                0, table.flatten() % 5, torch.einsum("mo,kio->kmi", grad, weight.detach()).flatten(0, 1)
            )[:4],
        ),
    ):
        assert (tensor.grad is not None) == trains
        if trains:
            torch.testing.assert_close(tensor.grad, expected)
