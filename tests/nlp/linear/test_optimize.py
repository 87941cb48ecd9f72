"""Fast linear layers: the same results, names, ties, training and files as the plain ones, and never a stale weight."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from common_kernels.onednn import has_linear
from nlp.linear import packed
from nlp.linear.optimize import optimize
from nlp.linear.packed import ACTIVATIONS, PackedLinear

FAST = has_linear(torch.float32)
BF16 = has_linear(torch.bfloat16)
needs_pack = pytest.mark.skipif(not FAST, reason="no oneDNN product on reordered weights here")

SMALL = dict(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
T5 = dict(vocab_size=99, d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16)


def _build(transformers: Any, name: str) -> nn.Module:
    """A small random encoder or decoder that ends in last_hidden_state."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
        "bert-relu": lambda: transformers.BertModel(transformers.BertConfig(hidden_act="relu", **SMALL)),
        "bert-quick": lambda: transformers.BertModel(transformers.BertConfig(hidden_act="quick_gelu", **SMALL)),
        "albert": lambda: transformers.AlbertModel(transformers.AlbertConfig(embedding_size=32, **SMALL)),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=99, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
        ),
        "gpt2": lambda: transformers.GPT2Model(
            transformers.GPT2Config(vocab_size=99, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
        ),
        "modernbert": lambda: transformers.ModernBertModel(
            transformers.ModernBertConfig(
                pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, **SMALL
            )
        ),
        "t5": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
        "t5-gated": lambda: transformers.T5EncoderModel(
            transformers.T5Config(feed_forward_proj="gated-gelu", **T5),
        ),
        "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(pad_token_id=0, **SMALL)),
    }
    torch.manual_seed(0)
    model = makers[name]().eval()
    with torch.no_grad():  # biases start at zero, where a forgotten one would not show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


# name -> activations moved into linear layers
FUSED = {
    "bert": 2,
    "bert-relu": 2,
    "bert-quick": 0,
    "albert": 1,
    "distilbert": 2,
    "gpt2": 2,
    "modernbert": 0,
    "t5": 2,
    "t5-gated": 2,
    "llama": 2,
}


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture
def always_pack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small layers take the fast path too, which is meant for large ones."""
    monkeypatch.setattr(packed, "_MIN_PRODUCTS", {torch.float32: 1, torch.bfloat16: 1})
    yield


def _ids(rows: int = 3, length: int = 17) -> torch.Tensor:
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(1))


def _hidden(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids).last_hidden_state
    return result


def _packed(model: nn.Module) -> list[PackedLinear]:
    return [m for m in model.modules() if isinstance(m, packed.PackedMixin)]


@pytest.mark.usefixtures("always_pack")
@pytest.mark.parametrize("name", FUSED)
def test_models_agree(transformers: Any, name: str) -> None:
    model = _build(transformers, name)
    fast = copy.deepcopy(model)
    report = optimize(fast)
    assert len(report.fused) == FUSED[name]
    assert not report.skipped
    assert list(model.state_dict()) == list(fast.state_dict())
    torch.testing.assert_close(_hidden(fast, _ids()), _hidden(model, _ids()), rtol=1e-5, atol=1e-5)
    if FAST:
        used = [m for m in _packed(fast) if m._packed.last is not None]
        assert len(used) >= len(_packed(fast)) - 1  # all but a pooler on three rows
    # with gradients the plain path computes the same
    torch.testing.assert_close(fast(input_ids=_ids()).last_hidden_state, _hidden(model, _ids()), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("always_pack")
@pytest.mark.skipif(not BF16, reason="this CPU does not multiply bfloat16")
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5-gated"])
def test_models_agree_in_bfloat16(transformers: Any, name: str) -> None:
    model = _build(transformers, name)
    exact = _hidden(model, _ids())
    fast = copy.deepcopy(model).to(torch.bfloat16)
    optimize(fast)
    got = _hidden(fast, _ids()).float()
    assert all(m._packed.last is not None for m in _packed(fast))
    assert F.cosine_similarity(got, exact, dim=-1).min() > 0.995
    plain_error = (_hidden(copy.deepcopy(model).to(torch.bfloat16), _ids()).float() - exact).norm()
    assert (got - exact).norm() < 1.5 * plain_error


def test_linear_on_every_device(device: str) -> None:
    torch.manual_seed(0)
    fast = PackedLinear(nn.Linear(400, 1100), "gelu").to(device)
    x = torch.randn(70, 400, device=device)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), F.gelu(F.linear(x, fast.weight, fast.bias)), rtol=1e-4, atol=1e-4)


@needs_pack
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 64])
def test_linear_matches_float64(activation: str, rows: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(400, 1100)
    fast = PackedLinear(linear, activation)
    x = torch.randn(rows, 400)
    with torch.no_grad():
        got = fast(x)
        want = ACTIVATIONS[activation](copy.deepcopy(linear).double()(x.double())).float()
    assert (fast._packed.last is not None) == (rows >= 3)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("always_pack")
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_and_strides(bias: bool) -> None:
    linear = nn.Linear(72, 80, bias=bias)
    fast = PackedLinear(linear)
    wide = torch.randn(6, 5, 144)
    inputs = {
        "vector": wide[0, 0, :72],
        "two axes": wide[0, :, :72],
        "three axes": wide[:, :, :72],
        "every second": wide[:, :, ::2],
        "transposed": wide[:, :, 3:75].transpose(0, 1),
        "expanded": wide[:1, :1, :72].expand(6, 5, 72),
        "no rows": wide[:0, :, :72],
        "no rows inside": wide[:, :0, :72],
    }
    with torch.no_grad():
        for name, x in inputs.items():
            torch.testing.assert_close(
                fast(x), linear(x), rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
        with pytest.raises(RuntimeError):
            fast(torch.randn(6, 71))
        with pytest.raises(RuntimeError):
            fast(torch.randn(6, 72, dtype=torch.float64))


def _set(weight: nn.Parameter, value: torch.Tensor) -> None:
    weight.data = value


CHANGES: dict[str, Callable[[PackedLinear, torch.Tensor], object]] = {
    "in place": lambda m, v: m.weight.copy_(v),
    "one row": lambda m, v: m.weight[3].copy_(v[3]),
    "one weight": lambda m, v: m.weight[3, 5].fill_(9.0),
    "view": lambda m, v: m.weight.view(-1)[7:8].fill_(9.0),
    "shared storage": lambda m, v: m.weight.detach()[3].mul_(2),
    "load_state_dict": lambda m, v: m.load_state_dict({"weight": v, "bias": m.bias}),
    "assign": lambda m, v: m.load_state_dict({"weight": v, "bias": m.bias}, assign=True),
    "new parameter": lambda m, v: setattr(m, "weight", nn.Parameter(v)),
    "new data": lambda m, v: _set(m.weight, v),
    "data in place": lambda m, v: m.weight.data.copy_(v),
    "data scaled": lambda m, v: m.weight.data.mul_(1.5),
    "numpy": lambda m, v: m.weight.detach().numpy().__setitem__(Ellipsis, v.numpy()),
    "data in one row, then eval": lambda m, v: (m.weight.data[3].zero_(), m.eval()),
}


@needs_pack
@pytest.mark.usefixtures("always_pack")
@pytest.mark.parametrize("change", CHANGES)
def test_no_stale_weight(change: str) -> None:
    torch.manual_seed(0)
    fast = PackedLinear(nn.Linear(72, 80))
    x = torch.randn(9, 72)
    with torch.no_grad():
        before = fast(x)
        assert fast._packed.last is not None
        CHANGES[change](fast, torch.randn(80, 72))
        want = F.linear(x, fast.weight, fast.bias)
        assert not torch.allclose(before, want)
        torch.testing.assert_close(fast(x), want, rtol=1e-5, atol=1e-5)


@needs_pack
@pytest.mark.usefixtures("always_pack")
def test_training_step_is_seen_by_both_models(transformers: Any) -> None:
    model = _build(transformers, "bert")
    fast = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    optimize(fast)
    assert type(model.encoder.layer[0].intermediate.dense) is nn.Linear  # type: ignore[union-attr, index]
    first = _hidden(fast, _ids())
    optimizer = torch.optim.AdamW(fast.parameters(), lr=1e-2)
    target = torch.randn(first.shape)
    losses = []
    for _ in range(5):
        loss = (fast(input_ids=_ids()).last_hidden_state - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for n, p in fast.named_parameters() if "pooler" not in n)
    torch.testing.assert_close(_hidden(fast, _ids()), _hidden(model, _ids()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(_hidden(fast, _ids()), first, atol=1e-3)


def test_gradients_equal_the_plain_ones() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(72, 80)
    fast = PackedLinear(copy.deepcopy(linear), "gelu")
    x = torch.randn(9, 72, requires_grad=True)
    fast(x).sum().backward()
    assert x.grad is not None
    got = (x.grad.clone(), fast.weight.grad, fast.bias.grad)
    x.grad = None
    F.gelu(linear(x)).sum().backward()
    torch.testing.assert_close(got, (x.grad, linear.weight.grad, linear.bias.grad))


@pytest.mark.usefixtures("always_pack")
def test_copies_and_files(transformers: Any, tmp_path: Any) -> None:
    for name in ("bert", "gpt2"):
        model = _build(transformers, name)
        optimize(model)
        want = _hidden(model, _ids())  # packs
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
        for other in others:
            assert torch.equal(_hidden(other, _ids()), want)
        model.save_pretrained(tmp_path / name)  # type: ignore[operator]
        loaded = type(model).from_pretrained(tmp_path / name).eval()  # type: ignore[attr-defined]
        torch.testing.assert_close(_hidden(loaded, _ids()), want, rtol=1e-5, atol=1e-5)
        copied = others[0].double()
        torch.testing.assert_close(_hidden(copied, _ids()).float(), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(_hidden(copied.float(), _ids()), want, rtol=1e-5, atol=1e-5)


def test_ties_stay(transformers: Any) -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).eval()
    optimize(model)
    assert isinstance(model.cls.predictions.decoder, PackedLinear)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    assert len(list(model.parameters())) == len(list(transformers.BertForMaskedLM(model.config).parameters()))


@needs_pack
@pytest.mark.usefixtures("always_pack")
def test_other_ways_through_torch_stay_plain() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(72, 80)
    fast = PackedLinear(linear)
    x = torch.randn(9, 72)
    with torch.no_grad():
        want = fast(x)
        assert fast._packed.last is not None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fast(x).dtype == torch.bfloat16
        weight = torch.randn(80, 72)
        swapped = torch.func.functional_call(fast, {"weight": weight}, (x,))
        torch.testing.assert_close(swapped, F.linear(x, weight, fast.bias), rtol=1e-5, atol=1e-5)
        assert fast.to("meta")(x.to("meta")).shape == (9, 80)
    with torch.inference_mode():
        made_there = PackedLinear(nn.Linear(72, 80))
        made_there(x)
        made_there.weight.copy_(linear.weight)  # no count of updates on such a weight
        made_there.bias.copy_(linear.bias)
        torch.testing.assert_close(made_there(x), want, rtol=1e-5, atol=1e-5)
    pruned = PackedLinear(nn.Linear(72, 80))
    prune.random_unstructured(pruned, "weight", amount=0.5)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), F.linear(x, pruned.weight, pruned.bias))


def test_compiles_whole() -> None:
    fast = PackedLinear(nn.Linear(72, 80), "gelu")
    x = torch.randn(9, 72)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), F.gelu(F.linear(x, fast.weight, fast.bias)), rtol=1e-5, atol=1e-5)


def test_what_is_left_alone() -> None:
    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(Own(4, 4), hooked, shared, shared, nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    x = torch.randn(5, 4)
    want = model(x)
    report = optimize(model)
    assert report.linears == ("2", "3")
    assert set(report.skipped) == {"0", "1", "4"}
    assert report.left == {
        "0": "is of the subclass Own",
        "1": "has hooks or a forward of its own",
        "4": "its weight is computed from other tensors",
    }
    assert model[2] is model[3]
    torch.testing.assert_close(model(x), want)
    assert optimize(model).linears == ()
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        optimize({})  # type: ignore[arg-type]


def test_a_module_that_means_something_else_is_not_fused(transformers: Any) -> None:
    bert = transformers.models.bert.modeling_bert

    class Normed(bert.BertIntermediate):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return self.intermediate_act_fn(self.dense(hidden_states) * 0.5)  # type: ignore[no-any-return]

    Normed.__module__ = bert.__name__
    model = nn.Sequential(Normed(transformers.BertConfig(**SMALL)))
    x = torch.randn(2, 5, 64)
    want = model(x)
    report = optimize(model)
    assert report.linears == ("0.dense",)
    assert report.fused == ()
    torch.testing.assert_close(model(x), want)


def test_a_layer_of_two_modules_is_not_fused(transformers: Any) -> None:
    block = transformers.models.bert.modeling_bert.BertIntermediate(transformers.BertConfig(**SMALL))
    model = nn.ModuleList([block, nn.Sequential(block.dense)])
    x = torch.randn(2, 5, 64)
    want = (block(x), model[1](x))
    report = optimize(model)
    assert report.linears == ("0.dense", "1.0") and report.fused == ()
    torch.testing.assert_close((block(x), model[1](x)), want)


def test_without_onednn(transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed.onednn, "has_linear", lambda dtype, activation="none": False)
    model = _build(transformers, "bert")
    want = _hidden(model, _ids())
    optimize(model)
    assert torch.equal(_hidden(model, _ids()), want)
    assert all(m._packed.last is None for m in _packed(model))


def test_import_does_not_load_transformers() -> None:
    code = "import sys, torch, nlp.linear.optimize as l; l.optimize(torch.nn.ReLU()); "
    code += "sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
