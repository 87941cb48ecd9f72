"""What people do with an accelerated network: set its attention, adapt it, watch it, flatten batches, compile it.

The oracle is the network as it was loaded, with the same done to it.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nlp.accelerate import accelerate
from nlp.linear.packed import ACTIVATIONS
from nlp.packing import attention, in_flight
from nlp.prune import Cascade
from tests.nlp import tiny_causal
from tests.nlp.tiny_models import network, padded, padding_id

pytest.importorskip("transformers", minversion="5")

FED_FORWARD = {"bert": "encoder.layer.1.intermediate.dense", "gpt2": "h.1.mlp.c_fc", "llama": "layers.1.mlp.gate_proj"}


def run(model: Any, **inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2"])
def test_another_attention_runs_padded_and_says_so_once(model_type: str, name: str) -> None:
    model = network(model_type)
    batch = padded((9, 4, 1), padding=padding_id(model))
    live = batch["attention_mask"].bool()
    want = run(model, **batch).last_hidden_state[live]
    fast = accelerate(model)
    own = fast.config._attn_implementation
    fast.set_attn_implementation(name)
    with pytest.warns(UserWarning, match=f"runs padded: attention was set to '{name}', which knows no packed rows"):
        close(run(fast, **batch).last_hidden_state[live], want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(run(fast, **batch).last_hidden_state[live], want)
        fast.set_attn_implementation(own)
        close(run(fast, **batch).last_hidden_state[live], want)


def test_another_attention_is_refused_where_tokens_leave() -> None:
    fast = accelerate(network("bert"), prune=Cascade(keep=0.5))
    fast.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="prunes cannot run this pass: attention was set to 'sdpa'"):
        fast(**padded((3, 2)))


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "distilbert", "modernbert"])
def test_attention_matrices_come_from_a_padded_pass(model_type: str) -> None:
    model = network(model_type, attention="eager")
    batch = padded((9, 4), padding=padding_id(model))
    live = batch["attention_mask"].bool()
    want = run(model, **batch, output_attentions=True)
    with pytest.warns(UserWarning, match="runs padded: output_attentions asks for attention matrices"):
        got = run(accelerate(model), **batch, output_attentions=True)
    close(got.last_hidden_state[live], want.last_hidden_state[live])
    assert len(got.attentions) == len(want.attentions) > 0
    for ours, theirs in zip(got.attentions, want.attentions, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("family", tiny_causal.FAMILIES)
def test_positions_that_begin_anew_keep_sequences_apart(family: str) -> None:
    """What padding-free training hands in: several sequences in a row, no mask, no cache."""
    model = tiny_causal.build(family)
    if family == "qwen2":
        pytest.skip("not accelerated")
    ids = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.stack([torch.arange(40), torch.cat([torch.arange(n) for n in (1, 21, 2, 16)])])
    want = run(model, input_ids=ids, position_ids=positions, use_cache=False).logits
    fast = accelerate(model)
    close(run(fast, input_ids=ids, position_ids=positions, use_cache=False).logits, want)
    alone = run(model, input_ids=ids[1:, 22:24], use_cache=False).logits
    close(run(fast, input_ids=ids, position_ids=positions, use_cache=False).logits[1:, 22:24], alone)
    # With a cache transformers takes a row for one sequence, whatever its positions.
    close(
        run(fast, input_ids=ids, position_ids=positions).logits,
        run(model, input_ids=ids, position_ids=positions).logits,
    )


def test_gradients_keep_flattened_sequences_apart() -> None:
    model = tiny_causal.build("llama")
    ids = torch.randint(3, 97, (1, 12))
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    fast = accelerate(model)
    fed = fast.get_input_embeddings()(ids).detach().requires_grad_()
    fast(inputs_embeds=fed, position_ids=positions, use_cache=False).logits[0, 5:].sum().backward()
    assert not fed.grad[0, :5].any() and bool(fed.grad[0, 5:].any())  # type: ignore[index]


def test_flattened_sequences_are_refused_where_tokens_leave() -> None:
    fast = accelerate(network("llama"), prune=Cascade(keep=0.5))
    positions = torch.cat([torch.arange(20), torch.arange(20)])[None]
    with pytest.raises(ValueError, match="position_ids begin anew within a row"):
        fast(input_ids=torch.ones(1, 40, dtype=torch.int64), position_ids=positions, use_cache=False)


class LowRank(nn.Module):
    """A layer and a low-rank change beside it, as adapters are put around layers."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.base_layer = layer
        generator = torch.Generator().manual_seed(3)
        self.a = nn.Parameter(torch.randn(width, 2, generator=generator) / 4)
        with torch.no_grad():
            out = layer(torch.zeros(1, width)).shape[-1]
        self.b = nn.Parameter(torch.randn(2, out, generator=generator) / 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x) + x @ self.a @ self.b
        return result


def adapted(model: Any, path: str, width: int) -> Any:
    parent, _, name = path.rpartition(".")
    module = model.get_submodule(parent)
    setattr(module, name, LowRank(getattr(module, name), width))
    return model


@pytest.mark.parametrize("model_type", sorted(FED_FORWARD))
def test_an_adapter_put_on_finds_the_plain_product(model_type: str) -> None:
    model = network(model_type)
    width = model.get_input_embeddings().weight.shape[1]
    path = FED_FORWARD[model_type]
    batch = padded((5, 3), padding=padding_id(model))
    live = batch["attention_mask"].bool()
    fast = accelerate(model)
    assert path in fast.acceleration.layers.fused
    before = run(fast, **batch).last_hidden_state
    adapted(fast, path, width)
    want = run(adapted(copy.deepcopy(model), path, width), **batch).last_hidden_state[live]
    close(run(fast, **batch).last_hidden_state[live], want)
    parent, _, name = path.rpartition(".")
    module = fast.get_submodule(parent)
    setattr(module, name, getattr(module, name).base_layer)  # taken off again
    assert torch.equal(run(fast, **batch).last_hidden_state, before)


@pytest.mark.parametrize("model_type", sorted(FED_FORWARD))
def test_a_hook_sees_the_plain_product(model_type: str) -> None:
    model, seen = network(model_type), []
    batch = padded((5, 5), padding=padding_id(model))
    fast = accelerate(model)
    for each in (model, fast):
        layer = each.get_submodule(FED_FORWARD[model_type])
        layer.register_forward_hook(lambda module, args, output: seen.append(output.flatten()))
    close(run(fast, **batch).last_hidden_state, run(model, **batch).last_hidden_state)
    close(*seen)


def test_an_activation_that_is_exchanged_is_used() -> None:
    model = network("bert")
    batch = padded((5, 5))
    fast = accelerate(model)
    for each in (model, fast):
        each.encoder.layer[0].intermediate.intermediate_act_fn = nn.Tanh()
    close(run(fast, **batch).last_hidden_state, run(model, **batch).last_hidden_state)


def test_fused_layers_do_activate() -> None:
    fast = accelerate(network("bert"))
    linear = fast.encoder.layer[0].intermediate.dense
    x = torch.randn(4, linear.in_features)
    with torch.no_grad():
        close(linear(x), ACTIVATIONS["gelu"](nn.functional.linear(x, linear.weight, linear.bias)))


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2"])
def test_networks_with_adapters_of_peft(model_type: str) -> None:
    peft = pytest.importorskip("peft")
    model = network(model_type)
    targets = {"bert": ["query", "dense"], "llama": ["q_proj", "gate_proj"], "gpt2": ["c_fc", "c_attn"]}[model_type]
    config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, fan_in_fan_out=model_type == "gpt2")
    torch.manual_seed(1)
    tuned = peft.get_peft_model(copy.deepcopy(model), config).eval()
    torch.manual_seed(1)
    after = peft.get_peft_model(accelerate(model), config).eval()
    batch = padded((5, 3), padding=padding_id(model))
    live = batch["attention_mask"].bool()
    want = run(tuned, **batch).last_hidden_state[live]
    for fast in (after, accelerate(tuned)):
        got = run(fast, **batch)
        close(got.last_hidden_state[live], want)
        assert got.kept[0].tolist() == [5, 3]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_prompts_padded_on_the_right_go_on_as_loaded(model_type: str) -> None:
    model = network(model_type, "LMHeadModel" if model_type == "gpt2" else "ForCausalLM")
    batch = padded((9, 4, 7), padding=0)
    fast = accelerate(model)
    options: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(fast.generate(**batch, **options), model.generate(**batch, **options))
    layers, packed = fast.acceleration.packing.parts.layers, []
    layers[0].register_forward_hook(lambda *_: packed.append(in_flight() is not None))
    run(fast, **batch)  # all columns are read here, and those of padding are nobody's
    assert packed == [True]


def test_chosen_hidden_states() -> None:
    model = network("bert")
    batch = padded((5, 3))
    live = batch["attention_mask"].bool()
    got = run(accelerate(model), **batch, output_hidden_states=[0, -1]).hidden_states
    want = run(model, **batch, output_hidden_states=[0, -1]).hidden_states
    assert [state is None for state in got] == [state is None for state in want]
    for ours, theirs in zip(got, want, strict=True):
        if theirs is not None:
            close(ours[live], theirs[live])


@pytest.mark.parametrize("name", ["softcap", "s_aux", "anything"])
def test_options_of_attention_that_would_be_ignored_are_refused(name: str) -> None:
    fast = accelerate(network("bert"))
    layer = fast.encoder.layer[0].attention.self
    own = type(layer).forward
    layer.forward = lambda *args, **kwargs: own(layer, *args, **{name: 3.0}, **kwargs)
    with pytest.raises(ValueError, match=f"was called with {name}, which attention of packed rows does not know"):
        fast(**padded((3, 2)))
    assert in_flight() is None


def test_compiles_whole_with_a_static_cache() -> None:
    model = network("llama", "ForCausalLM")
    ids = padded((6,))["input_ids"]
    options: dict[str, Any] = dict(max_new_tokens=3, do_sample=False, cache_implementation="static", pad_token_id=0)
    want = model.generate(ids, **options, disable_compile=True)
    fast = accelerate(model)
    fast.forward = torch.compile(fast.forward, fullgraph=True, backend="eager")
    assert torch.equal(fast.generate(ids, **options), want)


def test_pruning_networks_are_not_compiled() -> None:
    fast = accelerate(network("bert"), prune=Cascade(keep=0.5))
    with pytest.raises(Exception, match="a network that prunes cannot be compiled"):
        torch.compile(fast, fullgraph=True, backend="eager")(**padded((3, 3)))


def test_the_names_of_attention_are_those_of_the_networks() -> None:
    assert accelerate(network("bert")).config._attn_implementation == attention.NAME
    assert accelerate(network("mpnet")).config._attn_implementation == attention.ADDITIVE
