"""State dicts of other libraries for our layers: the right library is found, asked for, or refused."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pointcloud as pc
from pointcloud.checkpoints.convert import convert_optimizer_state, convert_state_dict, kernel_of
from pointcloud.checkpoints.layouts import decode, encode
from pointcloud.checkpoints.sources import LEAVES, layout_of
from tests.pointcloud.dense_oracle import random_cloud

FAMILIES = [source for source in LEAVES if source != "spconv-2.1"]


def network(cin: int = 4, mid: int = 6, cout: int = 5, large: bool = True) -> nn.Module:
    """Convolutions of every kind."""
    return pc.SparseSequential(
        pc.SubMConv3d(cin, mid, 5 if large else 3, bias=False), nn.BatchNorm1d(mid), nn.ReLU(),
        pc.SparseConv3d(mid, mid, 2, 2, indice_key="down"), nn.BatchNorm1d(mid),
        pc.SparseInverseConv3d(mid, cout, 2, "down"), pc.SubMConv3d(cout, cin, 1),
    )  # fmt: skip


def written_by(source: str, model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict as `source` would write it."""
    state = {}
    for key, value in model.state_dict().items():
        name, _, leaf = key.rpartition(".")
        layer = model.get_submodule(name)
        if not isinstance(layer, pc.SparseConvolution) or leaf != "weight":
            state[key] = value
            continue
        kernel = kernel_of(layer)
        layout = {"spconv": "krsc", "spconv-2.0": "rskc", "spconv-1": "rsck"}.get(source, source)
        if source == "spconv-2.1":
            layout = "krsc" if kernel.taps <= 32 else "rskc"
        weight = encode(layer.output_first_weight.detach(), layout, kernel)
        state[f"{name}.{LEAVES[source]}"] = weight
    if source == "minkowski":
        for name, layer in model.named_modules():
            if isinstance(layer, pc.SparseConvolution) and layer.bias is not None:
                state[f"{name}.bias"] = state[f"{name}.bias"][None]
        norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)]
        for key in [key for key in state if key.rpartition(".")[0] in norms]:
            name, _, leaf = key.rpartition(".")
            state[f"{name}.bn.{leaf}"] = state.pop(key)
    return state


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@pytest.mark.parametrize("source", LEAVES)
def test_every_library(source: str, given: bool) -> None:
    model, again = network(), network()
    model(random_cloud((8, 8, 8), 4, dtype=torch.float32))  # the statistics of batch norms too
    state = written_by(source, model)
    before = {key: value.clone() for key, value in state.items()}
    again.load_state_dict(convert_state_dict(state, again, source=source if given else None))
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert state.keys() == before.keys() and all(torch.equal(state[key], before[key]) for key in state)
    x = random_cloud((8, 8, 8), 4, dtype=torch.float32)
    assert torch.equal(model.eval()(x).features, again.eval()(x).features)


@pytest.mark.parametrize("source", ["spconv-1", "spconv-2.0"])
def test_an_ambiguous_layout_asks_for_its_writer(source: str) -> None:
    model = network(4, 4, 4, large=False)
    state = written_by(source, model)
    with pytest.raises(
        ValueError, match=r"source must be given: .* of '0.weight', do not tell which of 'spconv-2.1' \("
    ):
        convert_state_dict(state, network(4, 4, 4, large=False))
    with pytest.raises(RuntimeError) as error:
        network(4, 4, 4, large=False).load_state_dict(state)
    told = str(error.value)
    assert told.count("0.weight has the layout RSKC (") == 1  # one hint, which names both
    assert "or RSCK (" in told and "pointcloud.convert_state_dict(state_dict, model, source=" in told
    again = network(4, 4, 4, large=False)
    again.load_state_dict(convert_state_dict(state, again, source=source))
    assert torch.equal(again[0].weight, model[0].weight) and torch.equal(again[6].weight, model[6].weight)


def test_only_kernels_of_size_one_are_never_ambiguous() -> None:
    """Every spconv reads their memory alike."""
    model, again = (pc.SparseSequential(pc.SubMConv3d(4, 4, 1), pc.SubMConv3d(4, 4, 1)) for _ in range(2))
    for source in ("spconv-1", "spconv-2.0"):
        again.load_state_dict(convert_state_dict(written_by(source, model), again))
        assert torch.equal(again[0].weight, model[0].weight)


def test_metadata_settles_what_shapes_do_not() -> None:
    model, again = (network(4, 4, 4, large=False) for _ in range(2))
    state = OrderedDict(written_by("spconv-2.0", model))
    names = [name for name, layer in model.named_modules() if isinstance(layer, pc.SparseConvolution)]
    state._metadata = {name: {"version": 2} for name in names}  # type: ignore[attr-defined]
    again.load_state_dict(convert_state_dict(state, again))
    assert torch.equal(again[0].weight, model[0].weight)


@pytest.mark.parametrize("source", ["torchsparse", "minkowski"])
def test_norms_tell_torchsparse_from_minkowski(source: str) -> None:
    model, again = (network(4, 4, 4, large=False) for _ in range(2))
    state = written_by(source, model)
    bare = {key: value for key, value in state.items() if not key.startswith(("1.", "4."))}
    with pytest.raises(ValueError, match=r"'torchsparse' \(.*'minkowski' \("):
        convert_state_dict(bare, again)
    again.load_state_dict(convert_state_dict(state, again))
    assert torch.equal(again[3].weight, model[3].weight)


def test_errors() -> None:
    model = network()
    state = dict(model.state_dict())
    with pytest.raises(ValueError, match="source must be one of spconv, .*did you mean 'torchsparse'"):
        convert_state_dict(state, model, source="torchsparce")
    with pytest.raises(ValueError, match=r"0.weight must be the weight of \[6, 5, 5, 5, 4\].*as torchsparse lays"):
        convert_state_dict(state, model, source="torchsparse")
    state["3.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"3.weight must be the weight of \[6, 2, 2, 2, 6\].*got \[3, 3\]"):
        convert_state_dict(state, model)
    with pytest.raises(
        ValueError, match="of the model's 4 sparse convolutions, such as '0.weight', got keys such as 'm.0"
    ):
        convert_state_dict({f"m.{key}": value for key, value in model.state_dict().items()}, model)
    mixed = {**written_by("spconv-1", model), "6.weight": written_by("fvdb", model)["6.weight"]}
    with pytest.raises(ValueError, match="the 4 weights must be in the layouts of one library"):
        convert_state_dict(mixed, model)


@pytest.mark.parametrize("source", LEAVES)
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD], ids=lambda c: c.__name__)
def test_a_training_goes_on_with_the_optimisers_state(source: str, optimizer: Any) -> None:
    """The other library's training is simulated on parameters in its layout, decoded in the forward pass."""
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    ours = pc.SparseSequential(pc.SubMConv3d(3, 4, 3, bias=False), pc.SubMConv3d(4, 5, 1))
    stored = {f"{i}.{LEAVES[source]}": None for i in (0, 1)}
    state = written_by(source, ours)
    theirs = {key: nn.Parameter(state[key].clone()) for key in (*stored, "1.bias")}
    x = random_cloud((5, 5, 5), 3, dtype=torch.float32)
    target = torch.randn(len(x.features), 5)
    reference = copy.deepcopy(ours)

    def predict_theirs() -> Tensor:
        weights = {}
        for i in (0, 1):
            kernel, weight = kernel_of(reference[i]), theirs[f"{i}.{LEAVES[source]}"]
            ordered = decode(weight, layout_of(source, weight, kernel) or "", kernel)
            if kernel.product:  # as our layer keeps it
                ordered = ordered.reshape(5, 4).T.reshape(ordered.shape)
            weights[f"{i}.weight"] = ordered
        bias = theirs["1.bias"].reshape(-1)
        return torch.func.functional_call(reference, {**weights, "1.bias": bias}, x).features

    def train(predict: Any, opt: torch.optim.Optimizer) -> None:
        for _ in range(3):
            opt.zero_grad()
            (predict() - target).square().mean().backward()
            opt.step()

    def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:  # not in the order of the model
        return [{"params": parameters[1:]}, {"params": parameters[:1]}]

    first = optimizer(groups(list(theirs.values())), 0.05, **options)
    train(predict_theirs, first)
    written = {key: value.detach().clone() for key, value in theirs.items()}
    ours.load_state_dict(convert_state_dict(written, ours, source=source))
    second = optimizer(groups(list(ours.parameters())), 0.05, **options)
    saved = copy.deepcopy(first.state_dict())
    second.load_state_dict(convert_optimizer_state(saved, second, written, ours, source=source))
    train(predict_theirs, first)
    train(lambda: ours(x).features, second)
    after = {key: value.detach() for key, value in theirs.items()}
    reference.load_state_dict(convert_state_dict(after, reference, source=source))
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    if source == "torchsparse":
        with pytest.raises(ValueError, match=r"groups of \[2, 1\] parameters, as optimizer has, got \[1, 2\]"):
            saved["param_groups"].reverse()
            convert_optimizer_state(saved, second, written, ours, source=source)
