"""Packed weights: what oneDNN computes, and that no layer multiplies by a weight of the past."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common_kernels import onednn
from common_kernels.conv_update import ConvUpdate
from common_kernels.onednn import PackedWeight
from nlp.linear import packed as nlp_packed
from nlp.linear.packed import PackedLinear
from video.packed_conv import PackedConv2d

ROOT = Path(__file__).resolve().parents[2]
needs_onednn = pytest.mark.skipif(
    not (onednn.has_linear(torch.float32) and onednn.has_convolution(torch.float32)), reason="no oneDNN here"
)


def _linear() -> nn.Module:
    return PackedLinear(nn.Linear(96, 200))


def _conv1d() -> nn.Module:
    utils = pytest.importorskip("transformers.pytorch_utils")
    from nlp.linear.packed_conv1d import PackedConv1D

    layer = utils.Conv1D(200, 96)
    nn.init.normal_(layer.bias)
    return PackedConv1D(layer)


def _conv2d() -> nn.Module:
    return PackedConv2d.of(nn.Conv2d(32, 64, 3, padding=1), "relu6")


# What makes a layer, an input, and what the layer means. Each weight has more than 16 KiB.
USERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[nn.Module, Tensor], Tensor]]] = {
    "PackedLinear": (_linear, (9, 96), lambda m, x: F.linear(x, m.weight, m.bias)),  # type: ignore[arg-type]
    "PackedConv1D": (_conv1d, (9, 96), lambda m, x: x @ m.weight + m.bias),  # type: ignore[operator]
    "PackedConv2d": (_conv2d, (1, 32, 6, 5), lambda m, x: F.relu6(F.conv2d(x, m.weight, m.bias, 1, 1))),  # type: ignore[arg-type]
}


@pytest.fixture(autouse=True)
def always_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nlp_packed, "_MIN_PRODUCTS", {torch.float32: 1, torch.bfloat16: 1})


def _assign(layer: nn.Module, value: Tensor) -> None:
    layer.weight.data = value


def _step(layer: nn.Module, make: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)  # type: ignore[arg-type, assignment]
    make([layer.weight], lr=0.1, **options).step()


def _load(layer: nn.Module, value: Tensor, assign: bool) -> None:
    layer.load_state_dict({"weight": value, "bias": layer.bias}, assign=assign)


CHANGES: dict[str, Callable[[Any, Tensor], object]] = {
    "in place": lambda m, v: m.weight.copy_(v),
    "one number in place": lambda m, v: m.weight[3, 5].fill_(9.0),
    "data.copy_": lambda m, v: m.weight.data.copy_(v),
    "data.add_": lambda m, v: m.weight.data.add_(1),
    "data.neg_": lambda m, v: m.weight.data.neg_(),
    "data =": _assign,
    "numpy": lambda m, v: m.weight.detach().numpy().__setitem__(Ellipsis, v.numpy()),
    "load_state_dict": lambda m, v: _load(m, v, False),
    "load_state_dict, assign": lambda m, v: _load(m, v, True),
    "another parameter": lambda m, v: setattr(m, "weight", nn.Parameter(v)),
    "SGD": lambda m, v: _step(m, torch.optim.SGD),
    "Adam": lambda m, v: _step(m, torch.optim.Adam),
    "fused Adam": lambda m, v: _step(m, torch.optim.Adam, fused=True),  # counts no version
    "one number in data, then eval": lambda m, v: (m.weight.data[3, 5].fill_(9.0), m.eval()),
    "one number in data, then to": lambda m, v: (m.weight.data[3, 5].fill_(9.0), m.to(torch.float32)),
    "one number in data, then load_state_dict": lambda m, v: (
        m.weight.data[3, 5].fill_(9.0), m.load_state_dict({"bias": m.bias}, strict=False)
    ),
    "to bfloat16 and back": lambda m, v: m.to(torch.bfloat16).float(),
}  # fmt: skip


@needs_onednn
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("user", USERS)
def test_no_stale_weight(user: str, change: str) -> None:
    torch.manual_seed(0)
    make, shape, meaning = USERS[user]
    layer, x = make(), torch.randn(shape)
    with torch.no_grad():
        before = layer(x)
        assert layer._packed.last is not None
        CHANGES[change](layer, torch.randn(layer.weight.shape))  # type: ignore[arg-type]
        want = meaning(layer, x)
        assert not torch.allclose(before, want, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("user", USERS)
def test_one_number_that_torch_does_not_count_is_noticed_within_a_round(user: str) -> None:
    torch.manual_seed(0)
    make, shape, meaning = USERS[user]
    layer, x = make(), torch.randn(shape)
    with torch.no_grad():
        layer(x)
        layer.weight.data[3, 5].fill_(9.0)  # type: ignore[index]
        n_bytes = layer.weight.numel() * 4  # type: ignore[operator]
        for _ in range(-(-n_bytes // 2048)):
            got = layer(x)
        torch.testing.assert_close(got, meaning(layer, x), rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("user", USERS)
def test_weights_made_in_inference_mode_are_never_stale(user: str) -> None:
    make, shape, meaning = USERS[user]
    with torch.inference_mode():
        torch.manual_seed(0)
        layer, x = make(), torch.randn(shape)
        for _ in range(5):
            torch.testing.assert_close(layer(x), meaning(layer, x), rtol=1e-4, atol=1e-4)
            assert layer._packed.last is not None
            layer.weight[3, 5] += 1  # type: ignore[index, operator]


@needs_onednn
@pytest.mark.parametrize("user", USERS)
def test_copies_are_empty(user: str) -> None:
    make, shape, meaning = USERS[user]
    layer, x = make(), torch.randn(shape)
    with torch.no_grad():
        want = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other._packed.last is None and other._packed is not layer._packed
            other.weight.data[3, 5] += 1
            torch.testing.assert_close(other(x), meaning(other, x), rtol=1e-4, atol=1e-4)
        assert layer._packed.last is not None and torch.equal(layer(x), want)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_conv_update_keeps_the_weights_it_was_made_with(change: str, dense: bool) -> None:
    torch.manual_seed(0)
    source = nn.Conv2d(32, 64, 3, padding=1)
    layer = ConvUpdate(source.weight, source.bias, padding=1)
    x = torch.randn(1, 6, 5, 32)

    def run(layer: ConvUpdate) -> Tensor:
        out = torch.empty(layer.output_shape(x))
        layer(x, None, out, dense=dense)
        return out

    with torch.no_grad():
        want = run(layer)
        torch.testing.assert_close(want, source(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
        CHANGES[change](source, torch.randn(source.weight.shape))
        assert torch.equal(run(layer), want)
        others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
        del layer  # a copy must not read the memory of what it was copied from
        assert all(torch.equal(run(other), want) for other in others)


def test_a_form_is_made_once_and_for_each_layout() -> None:
    weight, made = nn.Parameter(torch.randn(70, 70)), []
    packed: PackedWeight[Tensor] = PackedWeight()

    def make(weight: Tensor) -> Tensor:
        made.append(weight)
        return weight.clone()

    assert packed.last is None and packed.current(weight) is None
    first = packed.get(weight, make)
    assert all(packed.get(weight, make) is first for _ in range(20)) and packed.current(weight) is first
    weight.data = weight.data.t()  # the same memory, version and shape
    assert torch.equal(packed.get(weight, make), weight) and len(made) == 2
    weight.data = weight.data[:40]
    assert packed.get(weight, make).shape == (40, 70)
    packed.drop()
    assert packed.last is None and packed.current(weight) is None


def test_many_rows_compare_the_whole_weight() -> None:
    weight = nn.Parameter(torch.randn(300, 300))
    for at in range(0, 300, 37):
        packed: PackedWeight[Tensor] = PackedWeight()
        packed.get(weight, torch.clone, rows=16384)
        weight.data[at, 2] += 1
        assert packed.current(weight) is None
        packed.get(weight, torch.clone)
        weight.data[at, 2] += 1
        assert packed.current(weight, rows=16384) is None


@pytest.mark.parametrize("view", [lambda w: w[:, ::2], lambda w: w.t(), lambda w: w[1:, 1:], lambda w: w[:0]])
def test_strided_weights(view: Callable[[Tensor], Tensor]) -> None:
    weight = view(torch.randn(201, 203))
    packed: PackedWeight[Tensor] = PackedWeight()
    first = packed.get(weight, torch.clone)
    for _ in range(200):
        assert packed.get(weight, torch.clone) is first
    weight.data.add_(1)
    assert torch.equal(packed.get(weight, torch.clone), weight)


def test_availability_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(onednn.availability()) == ["linear fp32", "linear bf16", "convolution fp32", "convolution bf16"]
    has = (onednn.has_linear.__wrapped__, onednn.has_convolution.__wrapped__)
    assert not any(each(torch.float64) or each(torch.float16) for each in has)
    for wrong in (None, lambda x, packed, *rest: torch.zeros(())):  # missing, and another meaning
        monkeypatch.setattr(onednn, "_linear", wrong)
        monkeypatch.setattr(onednn, "_convolution", wrong)
        assert not any(each(torch.float32) for each in has)
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not any(each(torch.float32) for each in has)


def test_private_operators_are_named_in_one_file() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("common_kernels", "common_models", "nlp", "video", "pointcloud", "trisparse", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if "ops.mkldnn" in path.read_text()
    }
    assert found == {"common_kernels/onednn.py"}
