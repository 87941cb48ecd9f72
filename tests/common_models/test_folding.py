"""One layer computes what a layer and its batch norm computed: against torch in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common_models.folding import fold_batch_norm, fold_scale, replace_module


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear])
def test_folded(kind: type[nn.Module], affine: bool, bias: bool) -> None:
    layer = nn.Conv2d(3, 5, 3, bias=bias) if kind is nn.Conv2d else nn.Linear(3, 5, bias=bias)
    norm: nn.Module = nn.BatchNorm2d(5, affine=affine) if kind is nn.Conv2d else nn.BatchNorm1d(5, affine=affine)
    net = nn.Sequential(layer, norm).double()
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    x = torch.randn(4, 3, 7, 7, dtype=torch.float64) if kind is nn.Conv2d else torch.randn(4, 3, dtype=torch.float64)
    net.eval()
    expected = net(x)
    fold_batch_norm(layer, norm)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert not layer.weight.requires_grad


def test_computed_in_fp64_whatever_the_dtype() -> None:
    weight, var = torch.full((1, 1), 3.0, dtype=torch.bfloat16), torch.full((1,), 2.0)
    folded, bias = fold_scale(weight, None, torch.ones(1), var, 0.0, None, None)
    assert folded.dtype == bias.dtype == torch.float64
    assert float(folded) == pytest.approx(3 / 2**0.5, rel=1e-15) and float(bias) == pytest.approx(-(2**-0.5), rel=1e-15)


def test_replace_module() -> None:
    net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
    replace_module(net, "0.0", nn.Tanh())
    replace_module(net, "1", nn.Sigmoid())
    assert type(net[0][0]) is nn.Tanh and type(net[1]) is nn.Sigmoid
