"""What accelerating does to a network, and what it leaves alone."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common_models import acceleration, dtypes
from common_models.modes import check_evaluating
from nlp.accelerate import accelerate, packed, restore
from nlp.packing import in_flight
from nlp.prune import Cascade
from tests.nlp.tiny_models import CONFIGS, network, padded, padding_id

pytest.importorskip("transformers", minversion="5")


ALL = sorted(CONFIGS)


def run(model: Any, **inputs: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that accelerating could leave behind in a network."""
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "own": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            name: [len(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for name, module in model.named_modules()
        },
        "attention": {
            name: module.config._attn_implementation
            for name, module in model.named_modules()
            if hasattr(module, "config")
        },
        "config": model.config.to_dict(),  # type: ignore[union-attr, operator]
        "parameters": {name: (p.data_ptr(), p._version, p.dtype, p.grad) for name, p in model.named_parameters()},
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ALL)
def test_the_original_stays_as_it_was(model_type: str, attention: str) -> None:
    model = network(model_type, attention=attention)
    batch = padded((3, 8), padding=padding_id(model))
    state, tensors = state_of(model), copy.deepcopy(model.state_dict())
    before = run(model, **batch).last_hidden_state
    fast = accelerate(model)
    run(fast, **batch)
    assert fast is not model and type(fast) is type(model)
    assert restore(fast) is model and restore(model) is model
    assert state_of(model) == state
    assert torch.equal(run(model, **batch).last_hidden_state, before)
    assert list(fast.state_dict()) == list(tensors)
    for name, value in fast.state_dict().items():
        assert torch.equal(value, tensors[name])
        assert value.data_ptr() == model.state_dict()[name].data_ptr()  # no second copy of the weights
    with packed(model) as inside:
        assert inside is model
        assert (run(model, **batch).last_hidden_state - before)[batch["attention_mask"].bool()].abs().max() <= 1e-5
        assert not run(model, **batch).last_hidden_state[~batch["attention_mask"].bool()].any()
    assert state_of(model) == state
    assert torch.equal(run(model, **batch).last_hidden_state, before)


@pytest.mark.parametrize("model_type", ["bert", "t5", "mpnet", "llama"])
def test_an_exception_leaves_nothing_behind(model_type: str) -> None:
    model = network(model_type)
    batch = padded((3, 8), padding=padding_id(model))
    state, before = state_of(model), run(model, **batch).last_hidden_state

    def fail(*_: Any) -> None:
        raise KeyError("in a layer")

    with pytest.raises(ZeroDivisionError), packed(model):
        1 / 0  # noqa: B018
    fast = accelerate(model)
    for each in (model, fast):
        scope = packed(model) if each is model else torch.no_grad()
        with scope:
            handle = each.get_submodule("encoder" if model_type == "bert" else "").register_forward_pre_hook(fail)
            for _ in range(2):
                with pytest.raises(KeyError, match="in a layer"):
                    run(each, **batch)
                assert in_flight() is None
            handle.remove()
            got = run(each, **batch).last_hidden_state
            assert (got - before)[batch["attention_mask"].bool()].abs().max() <= 1e-5
    deep = [m for m in fast.modules() if isinstance(m, nn.Linear)][-1]
    handle = deep.register_forward_hook(fail)
    with pytest.raises(KeyError):
        run(fast, **batch)
    assert in_flight() is None
    handle.remove()
    for wrong in (
        {"input_ids": batch["input_ids"] + 1000},
        {"input_ids": batch["input_ids"], "nonsense": (1).__add__},
        {},
    ):
        try:
            run(fast, **wrong)
        except (IndexError, TypeError, ValueError, AttributeError):
            pass
        assert in_flight() is None
    assert state_of(model) == state


def test_nested_networks_do_not_see_each_other() -> None:
    outer, inner = network("bert", "ForMaskedLM"), network("llama")
    long, short = padded((5, 9, 2)), padded((4, 1), side="left")
    want, want_inner = run(outer, **long).logits, run(inner, **short).last_hidden_state
    fast, fast_inner = accelerate(outer), accelerate(inner)
    seen: list[Tensor] = []
    for place in ("bert.encoder.layer.1", "bert", "cls"):
        handle = fast.get_submodule(place).register_forward_hook(
            lambda *_: seen.append(run(fast_inner, **short).last_hidden_state)
        )
        got = run(fast, **long)
        handle.remove()
        assert (got.logits - want)[long["attention_mask"].bool()].abs().max() <= 1e-5
        assert got.kept[0].tolist() == [5, 9, 2]
        # The plain network inside of a packed pass is not packed.
        handle = fast.get_submodule(place).register_forward_hook(
            lambda *_: seen.append(run(inner, **short).last_hidden_state)
        )
        run(fast, **long)
        handle.remove()
    for state in seen:
        assert (state - want_inner)[short["attention_mask"].bool()].abs().max() <= 1e-5


def test_threads_do_not_see_each_other() -> None:
    models = [network("bert"), network("t5"), network("qwen3"), network("mpnet")]
    batches = [padded((5 + i, 3, 17, 2 + i), padding=padding_id(m), seed=i) for i, m in enumerate(models)]
    wants = [run(m, **b).last_hidden_state for m, b in zip(models, batches, strict=True)]
    # Two threads share each network, with different batches; a barrier inside a layer makes the passes overlap.
    other = [{name: x[1:3, :17] for name, x in b.items()} for b in batches]
    fast = [accelerate(m) for m in models]
    barrier = threading.Barrier(2 * len(models), timeout=30)

    def meet(*_: Any) -> None:
        barrier.wait()

    for each in fast:
        each.acceleration.packing.parts.layers[1].register_forward_pre_hook(meet)
    errors: list[float] = []
    failures: list[BaseException] = []

    def work(i: int, half: bool) -> None:
        try:
            for _ in range(3):
                batch = other[i] if half else batches[i]
                want = wants[i][1:3, :17] if half else wants[i]
                got = run(fast[i], **batch)
                errors.append(float((got.last_hidden_state - want)[batch["attention_mask"].bool()].abs().max()))
                assert got.kept[0].tolist() == batch["attention_mask"].sum(1).tolist()
        except BaseException as error:  # any failure must reach the main thread
            barrier.abort()
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i, half)) for i in range(len(models)) for half in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(errors) == 6 * len(models) and max(errors) <= 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_saves_a_plain_network(tmp_path: Path, attention: str) -> None:
    model = network("bert", "ForSequenceClassification", attention=attention)
    fast = accelerate(model)
    fast.save_pretrained(tmp_path / "fast")
    model.save_pretrained(tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    again = type(model).from_pretrained(tmp_path / "fast", attn_implementation=attention).eval()
    assert not hasattr(again, "acceleration") and again.config._attn_implementation == attention
    batch = padded((4, 7))
    assert torch.equal(run(again, **batch).logits, run(model, **batch).logits)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("model_type", ["bert", "mpnet", "t5", "llama"])
def test_copies_and_pickles_are_packed_networks_of_their_own(model_type: str, copied: Any) -> None:
    model = network(model_type)
    batch = padded((3, 8), padding=padding_id(model))
    want = run(model, **batch).last_hidden_state
    fast = accelerate(model)
    other = copied(fast)
    with torch.no_grad():
        for parameter in fast.parameters():  # the copy must use neither its memory nor its hooks
            parameter.zero_()
    got = run(other, **batch)
    live = batch["attention_mask"].bool()
    torch.testing.assert_close(got.last_hidden_state[live], want[live], rtol=2e-5, atol=2e-5)
    assert got.kept[0].tolist() == [3, 8]  # told by packed passes only


def test_a_copy_prunes_on_its_own() -> None:
    fast = accelerate(network("bert"), prune=Cascade(keep=0.5, min_tokens=2))
    batch = padded((12, 20))
    other = copy.deepcopy(fast)
    assert torch.equal(run(other, **batch).last_hidden_state, run(fast, **batch).last_hidden_state)
    assert run(other, **batch).kept[-1].tolist() == run(fast, **batch).kept[-1].tolist() != [12, 20]


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "mpnet", "t5"])
def test_dtypes_leave_the_original_alone(model_type: str) -> None:
    model = network(model_type)
    batch = padded((3, 8), padding=padding_id(model))
    state, want = state_of(model), run(model, **batch).last_hidden_state
    moved = accelerate(model)
    for fast in (accelerate(model, dtype="bf16"), accelerate(model, dtype=torch.bfloat16), moved.to(torch.bfloat16)):
        assert run(fast, **batch).last_hidden_state.dtype == torch.bfloat16
    assert accelerate(model).half().dtype == torch.float16
    double = accelerate(model, dtype=torch.float64)
    assert double.acceleration.dtype == torch.float64
    assert (run(double, **batch).last_hidden_state - want)[batch["attention_mask"].bool()].abs().max() <= 1e-5
    assert run(moved.float(), **batch).last_hidden_state.dtype == torch.float32
    assert accelerate(model).acceleration.dtype == torch.float32
    assert accelerate(accelerate(model).acceleration.original, dtype="fp64").acceleration.dtype == torch.float64
    assert state_of(model) == state
    assert torch.equal(run(model, **batch).last_hidden_state, want)


def test_shared_parameters_follow_the_original() -> None:
    model = network("bert")
    fast = accelerate(model)
    batch = padded((3, 8))
    run(fast, **batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    got, want = run(fast, **batch).last_hidden_state, run(model, **batch).last_hidden_state
    assert (got - want)[batch["attention_mask"].bool()].abs().max() <= 1e-5


@pytest.mark.parametrize("model_type", ALL)
def test_gradients_equal_the_padded_networks(model_type: str) -> None:
    model = network(model_type).train()
    batch = padded((9, 1, 20), padding=padding_id(model))
    mask = batch["attention_mask"].bool()
    fast = accelerate(model)
    packed_passes: list[bool] = []
    fast.acceleration.packing.parts.layers[0].register_forward_hook(
        lambda *_: packed_passes.append(in_flight() is not None)
    )
    weights = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(2))
    for each in (model, fast):
        (each(**batch).last_hidden_state * weights)[mask].sum().backward()
    assert packed_passes and all(packed_passes)
    got, want = dict(fast.named_parameters()), dict(model.named_parameters())
    assert any(p.grad is not None for p in want.values())
    for name, parameter in want.items():
        if parameter.grad is None:
            assert got[name].grad is None, name
            continue
        scale = parameter.grad.abs().max().clamp(min=1)
        assert (got[name].grad - parameter.grad).abs().max() <= 1e-5 * scale, name  # type: ignore[operator]


def test_training_with_attention_dropout_runs_padded() -> None:
    model = network("bert", attention_probs_dropout_prob=0.5).train()
    fast = accelerate(model)
    batch = padded((9, 4))
    outputs = []
    for each in (model, fast):
        torch.manual_seed(1)
        outputs.append(each(**batch).last_hidden_state)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
    fast.eval()
    model.eval()
    assert not run(fast, **batch).last_hidden_state[1, 4:].any()


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_gradient_checkpointing_runs_padded_or_not_at_all(model_type: str) -> None:
    """It runs layers again after the pass, when nothing tells where the sequences begin."""
    options = {} if model_type == "llama" else dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = padded((9, 4))
    live = batch["attention_mask"][..., None]
    gradients = []
    for checkpointing in (False, True):
        fast = accelerate(network(model_type, **options)).train()
        if checkpointing:
            fast.gradient_checkpointing_enable()
        (fast(**batch).last_hidden_state * live).square().sum().backward()
        gradients.append([p.grad for p in fast.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    pruned = accelerate(network(model_type, **options), prune=Cascade()).train()
    pruned.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="^a network that prunes cannot run this pass: with gradient checkpointing"):
        pruned(**batch)


def test_an_interrupted_pass_leaves_nothing_to_the_next() -> None:
    """torch calls no more hooks after a KeyboardInterrupt."""
    model = network("t5", "ForConditionalGeneration", decoder_start_token_id=0)
    fast = accelerate(model)
    batch = padded((9, 4), padding=padding_id(model))
    decoder = {**batch, "decoder_input_ids": batch["input_ids"]}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = fast.encoder.block[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(fast, **decoder)
    handle.remove()
    torch.testing.assert_close(run(fast, **decoder).logits, run(model, **decoder).logits, rtol=0, atol=1e-5)
    assert in_flight() is None


@pytest.mark.parametrize("prune", [None, Cascade(layers=[1], min_tokens=1)])
@pytest.mark.parametrize("model_type", ["bert", "llama", "modernbert", "gpt2"])
def test_autocast(model_type: str, prune: Cascade | None) -> None:
    model = network(model_type)
    fast = accelerate(model, prune=prune)
    batch = padded((9, 4), padding=padding_id(model))
    live = batch["attention_mask"].bool()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = fast(**batch).last_hidden_state, model(**batch).last_hidden_state
        if prune is None:
            assert (got - want)[live].abs().max() < 0.1
    got.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in fast.parameters() if p.grad is not None)


def test_a_trace_serves_other_lengths() -> None:
    """Traced packed, the numbers of tokens would be those of the example."""
    model = network("bert")
    fast = accelerate(model)
    with torch.no_grad():
        traced = torch.jit.trace(fast, example_kwarg_inputs=padded((9, 4)), strict=False)
        other = padded((5, 9))
        got, want = traced(**other)["last_hidden_state"], model(**other).last_hidden_state
        live = other["attention_mask"].bool()
        torch.testing.assert_close(got[live], want[live], rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="^a network that prunes cannot be traced or exported"):
            torch.jit.trace(accelerate(model, prune=Cascade()), example_kwarg_inputs=other, strict=False)


def test_auto_is_the_fastest_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    for multiplies, own, wanted in (
        (True, torch.float32, torch.bfloat16),
        (False, torch.float32, torch.float32),
        (False, torch.bfloat16, torch.float32),
        (True, torch.float16, torch.float16),
    ):
        monkeypatch.setattr(dtypes, "multiplies_bf16", lambda device, answer=multiplies: answer)
        model = network("bert").to(own)
        for name in ("auto", "fastest"):
            fast = accelerate(model, dtype=name)
            assert fast.acceleration.dtype == fast.dtype == wanted
        assert accelerate(model).dtype == own


def test_what_was_done() -> None:
    model = network("bert")
    hooked = model.encoder.layer[0].output.dense
    hooked.register_forward_hook(lambda *_: None)
    fast = accelerate(model, prune=Cascade(0.5), task="cls")
    made = fast.acceleration
    assert isinstance(made, acceleration.Acceleration) and made.original is model and restore(fast) is model
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert [*made.changed, *made.left] != [] and {*made.changed, *made.left} == set(linears)
    assert made.left == {"encoder.layer.0.output.dense": "has hooks or a forward of its own"}
    check_evaluating(fast)
    said = str(made)
    assert said.startswith("runs without padding in fp32; ") and "Cascade(keep=0.5" in said and "task 'cls'" in said
    assert said.endswith("left: encoder.layer.0.output.dense: has hooks or a forward of its own")
    with pytest.raises(ValueError, match="^model must not be accelerated already: restore"):
        accelerate(fast)
