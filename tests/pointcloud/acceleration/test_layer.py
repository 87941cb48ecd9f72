"""What a layer of an accelerated network keeps of its folded weights, and for how long."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import pointcloud
from pointcloud.acceleration.layer import DeferredLayer, fold, in_kernel_order
from pointcloud.acceleration.seen import Seen
from pointcloud.acceleration.steps import Norm, changes
from pointcloud.conv import SubMConv3d


def norm_of(module: nn.BatchNorm1d) -> Norm:
    tensors = (module.running_mean, module.running_var, module.weight, module.bias)
    return Norm("norm", changes(*tensors), *tensors, module.eps)  # type: ignore[arg-type]


def test_fold_is_the_norms_formula() -> None:
    conv, norm = SubMConv3d(3, 5, 3), nn.BatchNorm1d(5)
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.1, 2)
    nn.init.uniform_(norm.weight, -1, 1)
    nn.init.uniform_(norm.bias, -1, 1)
    with torch.no_grad():
        weight, bias = fold(conv.weight, conv.bias, (norm_of(norm), norm_of(norm)))
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * factor
        expected = conv.weight.double() * (factor**2).view(-1, 1, 1, 1, 1)
        torch.testing.assert_close(weight, expected.float())
        torch.testing.assert_close(bias, ((conv.bias * factor + shift) * factor + shift).float())
        assert fold(conv.weight, None, ())[1] is None
    assert weight.flatten(1, -2).permute(1, 2, 0).is_contiguous()
    assert torch.equal(in_kernel_order(conv.weight), conv.weight)


def test_folded_weights_are_kept_while_nothing_changes() -> None:
    layer, made = DeferredLayer("conv", Seen()), []
    conv, norms = SubMConv3d(3, 5, 3), [nn.BatchNorm1d(5) for _ in range(6)]

    def keep(norm: nn.BatchNorm1d) -> None:
        layer.kept(conv, (norm_of(norm),), "form", lambda: made.append(norm) or len(made))

    keep(norms[0]), keep(norms[0])
    assert len(made) == 1
    for norm in norms:  # they are equal
        keep(norm)
    assert len(made) == 1
    for index, norm in enumerate(norms):
        norm.running_mean.data.fill_(index + 1)
        keep(norm), keep(norm)
    assert len(made) == 7
    keep(norms[0])
    assert len(made) == 8, "only the latest few are kept"
    conv.weight.data[0, 0, 0, 0, 0] += 1
    keep(norms[0])
    assert len(made) == 9
    keep(norms[0])
    copy = pickle.loads(pickle.dumps(layer))
    assert copy.name == "conv" and copy.kept(conv, (), "form", lambda: "new") == "new"


def test_elsewhere_torch_counts_changes() -> None:
    """What is kept for weights on a GPU goes when torch has counted a change, or the weight is another."""
    layer, weight = DeferredLayer("conv", Seen()), torch.ones(3)
    first = layer.on_device(weight)
    assert layer.on_device(weight) is first
    weight.add_(1)
    second = layer.on_device(weight)
    assert second is not first and layer.on_device(weight.clone()) is not second


@pytest.mark.usefixtures("one_thread")
def test_a_layer_that_nothing_follows_does_not_wait() -> None:
    """Its input would be copied in vain; its results are the same."""
    model = nn.Sequential(SubMConv3d(4, 4, 3), SubMConv3d(4, 4, 3)).eval()
    cells = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2], [0, 3, 3, 3]], dtype=torch.int32)
    x = pointcloud.SparseConvTensor(torch.randn(3, 4), cells, [5, 5, 5], 1)
    fast = pointcloud.accelerate(model)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(x).features, model(x).features, rtol=1e-5, atol=1e-6)
    assert fast[0].deferral._alone and not fast.acceleration.left
