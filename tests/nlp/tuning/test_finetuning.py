from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")


import nlp.tuning.finetuning as module
from nlp.accelerate import accelerate, restore
from nlp.prune import Cascade, Merge, Random, Threshold
from nlp.texts.embedder import Embedder
from nlp.tuning import finetune
from tests.nlp import tiny_models

MERGE = Merge(0.3, min_tokens=8)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return tiny_models.sentences(60, 50)


def tiny(head: str = "Model", **changes: Any) -> Any:
    return tiny_models.network("bert", head, **changes)


def tuned(model: Any, texts: list[str], policy: Any = MERGE, **options: Any) -> Any:
    settings = dict(
        tokenizer=tiny_models.tokenizer(), steps=12, learning_rate=3e-4, batch_tokens=400, max_length=64,
        precision="fp32", progress=False,
    )  # fmt: skip
    return finetune(model, texts, policy, **{**settings, **options})


def lost(pruned: Any, dense: Any, texts: list[str]) -> float:
    a, b = (torch.from_numpy(Embedder(net, tiny_models.tokenizer()).embed(texts)) for net in (pruned, dense))
    return float((1 - torch.cosine_similarity(a, b)).mean())


def parameters(model: Any) -> list[torch.Tensor]:
    return list(restore(model).state_dict().values())


@pytest.mark.parametrize("policy", [MERGE, Cascade(0.4, min_tokens=8), Random(0.4, min_tokens=8)], ids=repr)
def test_training_loses_less_and_leaves_the_model_alone(texts: list[str], policy: Any) -> None:
    model = tiny()
    before = [value.clone() for value in model.state_dict().values()]
    plain = lost(accelerate(model, prune=policy), model, texts)
    found = tuned(model, texts, policy, steps=25)
    assert found.acceleration.prune == policy
    assert lost(found, model, texts) < 0.8 * plain
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert not found.training
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in model.parameters()]


def test_precision_bf16_trains_too(texts: list[str]) -> None:
    model = tiny()
    plain = lost(accelerate(model, prune=MERGE), model, texts)
    found = tuned(model, texts, precision="bf16", steps=25)
    assert next(found.parameters()).dtype == torch.float32
    assert lost(found, model, texts) < 0.9 * plain


def test_a_classifier_learns_its_own_logits(texts: list[str]) -> None:
    model = tiny("ForSequenceClassification", num_labels=3)
    policy = Cascade(0.3, min_tokens=8)
    ids = tiny_models.tokenizer()(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")

    def divergence(net: Any) -> float:
        with torch.no_grad():
            want, got = (m(**ids).logits.log_softmax(-1) for m in (model, net))
        return float(torch.nn.functional.kl_div(got, want, reduction="batchmean", log_target=True))

    assert divergence(tuned(model, texts, policy, steps=25)) < 0.8 * divergence(accelerate(model, prune=policy))


def test_the_same_seed_gives_the_same_network_and_another_one_another(texts: list[str]) -> None:
    first, second, other = (parameters(tuned(tiny(), texts, steps=3, seed=seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, second))
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize(
    ("policy", "options"), [(MERGE, {}), (Threshold(0.8, min_tokens=8), {"keep": 0.6})], ids=["merge", "threshold"]
)
def test_a_stopped_run_goes_on_to_the_same_end(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Any, options: dict[str, Any]
) -> None:
    whole = tuned(tiny(), texts, policy, **options)
    path = tmp_path / "run.safetensors"
    step = module._Run._train_step

    def dies(run: Any, positions: list[int]) -> float:
        if run.step == 7:
            raise KeyboardInterrupt
        return step(run, positions)

    monkeypatch.setattr(module._Run, "_train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        tuned(tiny(), texts, policy, checkpoint=path, save_every=3, **options)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    seen = []
    monkeypatch.setattr(module._Run, "_train_step", lambda run, each: seen.append(run.step) or step(run, each))
    resumed = tuned(tiny(), texts, policy, checkpoint=path, save_every=3, **options)
    assert seen == [6, 7, 8, 9, 10, 11]
    assert all(map(torch.equal, parameters(whole), parameters(resumed)))
    assert resumed.acceleration.prune == whole.acceleration.prune
    # A run that is done is only read.
    seen.clear()
    again = tuned(tiny(), texts, policy, checkpoint=path, save_every=3, **options)
    assert not seen
    assert all(map(torch.equal, parameters(whole), parameters(again)))


def test_checkpoints_of_other_runs_are_refused(texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    tuned(tiny(), texts, steps=1, checkpoint=path)
    with pytest.raises(ValueError, match=r"of another run: its policy is .*0\.3"):
        tuned(tiny(), texts, Merge(0.5, min_tokens=8), steps=1, checkpoint=path)
    with pytest.raises(ValueError, match="of another run: its texts"):
        tuned(tiny(), texts[:-1], steps=1, checkpoint=path)
    with pytest.raises(ValueError, match="of another run: its weights"):
        tuned(tiny(num_hidden_layers=2), texts, steps=1, checkpoint=path)
    with pytest.raises(ValueError, match="must be the path of a file"):
        tuned(tiny(), texts, steps=1, checkpoint=tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        tuned(tiny(), texts, steps=1, checkpoint=path)


def test_minutes_become_a_number_of_steps(texts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [0.0]
    step = module._Run._train_step

    def slow(run: Any, positions: list[int]) -> float:
        clock[0] += 6.0
        return step(run, positions)

    monkeypatch.setattr(module._Run, "_train_step", slow)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    tuned(tiny(), texts, steps=None, minutes=0.5, checkpoint=tmp_path / "run")
    assert clock[0] == 30.0


def test_rate_rises_then_falls_to_zero() -> None:
    rates = [module.rate(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_every_text_comes_once_in_an_epoch(texts: list[str]) -> None:
    settings = module._Settings(1e-3, 0.1, 0.0, 200, 5, "fp32", None)
    sample = module.read(tiny(), texts, tiny_models.tokenizer(), None)
    run = module._Run(tiny(), sample, MERGE, "mean", settings)
    batches, seen = run._batches(0), []
    per_epoch = 0
    while len(seen) < len(texts):
        seen += next(batches)
        per_epoch += 1
    assert sorted(seen) == list(range(len(texts)))
    assert seen != sorted(seen)
    second = next(batches)
    assert second == next(run._batches(per_epoch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 3, "minutes": 1}, "must not both"),
        ({"steps": None, "minutes": -1}, "minutes must be a number above 0"),
        ({"keep": 0.5}, "keep must be None for Merge"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"warmup": 2}, "warmup"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"precision": "int8"}, "precision must be"),
        ({"pooling": "max"}, "pooling must be one of mean, cls, last"),
        ({"save_every": 0}, "save_every"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_wrong_arguments_are_refused(texts: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuned(tiny(), texts, **options)


def test_texts_that_teach_nothing_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="texts must not be empty"):
        tuned(tiny(), [])
    with pytest.raises(ValueError, match=r"at least min_tokens = 64 .* got 2 of at most 4"):
        tuned(tiny(), ["a film", "good"], Merge(0.5))
    with pytest.raises(TypeError, match="wrap it in a list"):
        tuned(tiny(), "a film")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"policy must be a policy such as nlp\.Merge, got float"):
        tuned(tiny(), texts, 0.5)
    with pytest.raises(ValueError, match="must give embeddings"):
        tuned(tiny("ForTokenClassification"), texts)
    with pytest.raises(ValueError, match="tokenizer must be given"):
        finetune(tiny(), texts, MERGE, progress=False)


def test_learned_thresholds_meet_their_budget(texts: list[str]) -> None:
    random.seed(0)
    model = tiny()
    found = tuned(model, texts, Threshold(0.2, min_tokens=8), keep=0.7, steps=80)
    policy = found.acceleration.prune
    assert type(policy) is Threshold
    assert isinstance(policy.theta, tuple)
    ids = tiny_models.tokenizer()(
        [text for text in texts if len(text.split()) >= 8], padding=True, truncation=True, max_length=64,
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        kept = found(**ids).kept[:-1].sum(1).double()
    assert float((kept / kept[0]).mean()) == pytest.approx(0.7, abs=0.06)
