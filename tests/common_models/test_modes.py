"""Whether a network evaluates, is watched, or is being recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from common_models.modes import check_evaluating, evaluating, exporting, is_hooked, owns_weight, transforming


def test_training_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    check_evaluating(model)
    model[1].train()
    with pytest.raises(ValueError, match="but 1 is in training mode: call model.eval"):
        check_evaluating(model)
    model.train()
    with pytest.raises(ValueError, match="but Sequential and 2 more modules are in training mode"):
        check_evaluating(model)


class Stubborn(nn.Module):
    """A network that refuses `eval`, as some freeze their batch norms in `train`."""

    def train(self, mode: bool = True) -> Stubborn:
        raise RuntimeError("not this way")


def test_evaluating_gives_every_flag_back() -> None:
    one, two = nn.Sequential(nn.Dropout(), nn.Dropout().eval()), Stubborn()
    with pytest.raises(KeyError), evaluating(one, two):
        assert not any(module.training for model in (one, two) for module in model.modules())
        raise KeyError
    assert [module.training for module in one.modules()] == [True, True, False] and two.training


class Asks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if exporting() else x - 1


def test_exporting() -> None:
    model, x = Asks().eval(), torch.zeros(2)
    assert model(x).tolist() == [-1, -1]
    assert torch.export.export(model, (x,), strict=False).module()(x).tolist() == [1, 1]
    assert torch.jit.trace(model, (x,), check_trace=False)(x).tolist() == [1, 1]


@pytest.mark.parametrize(
    "watch",
    [
        lambda m: m.register_forward_hook(lambda *a: None),
        lambda m: m.register_forward_pre_hook(lambda *a: None),
        lambda m: m.register_full_backward_hook(lambda *a: None),
        lambda m: m.register_full_backward_pre_hook(lambda *a: None),
        lambda m: setattr(m, "forward", lambda x: x),
    ],
    ids=["forward", "before forward", "backward", "before backward", "forward replaced"],
)
def test_everything_that_watches_counts(watch: Callable[[nn.Module], object]) -> None:
    layer = nn.Linear(2, 2)
    assert not is_hooked(layer) and owns_weight(layer)
    watch(layer)
    assert is_hooked(layer) and not owns_weight(layer)


def test_weights_that_are_computed_are_not_owned() -> None:
    assert not owns_weight(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert not owns_weight(nn.ReLU())


def test_transforming() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    seen: list[bool] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(transforming())
        return x * 2

    x = torch.ones(3)
    note(x)
    assert seen.pop() is False
    for run in (
        lambda: make_fx(note)(x),
        lambda: torch.vmap(note)(x),
        lambda: torch.func.jvp(note, (x,), (x,)),
        lambda: torch.func.grad(lambda y: note(y).sum())(x),
    ):
        run()
        assert seen.pop() is True
    with torch.autograd.forward_ad.dual_level():
        note(x)
    with FakeTensorMode():
        note(torch.ones(3))
    assert seen == [True, True] and not transforming()
