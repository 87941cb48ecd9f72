"""What a calibration chooses, and what it says where nothing gains."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import nlp
import nlp.tuning.calibration as module
from nlp.accelerate import accelerate
from nlp.prune import Cascade, Merge, Random
from nlp.texts.embedder import Embedder
from nlp.tuning import Candidate, Family, calibrate
from nlp.tuning.families import families
from nlp.tuning.timing import in_turn
from tests.nlp import tiny_models

FAMILIES = [
    Family("merge", lambda s: Merge(1 - s, min_tokens=8)),
    Family("random", lambda s: Random(1 - s, min_tokens=8)),
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return tiny_models.sentences(60, 60)


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as of a machine without other work: those of the tokens that the layers read."""

    def times(calls: Any, n_batches: int, repeats: int, device: torch.device) -> list[float]:
        return [sum(float(call(batch).kept[:-1].sum()) for batch in range(n_batches)) for call in calls]

    monkeypatch.setattr(module, "in_turn", times)


def found(texts: list[str], model: Any = None, **options: Any) -> Any:
    settings: dict[str, Any] = dict(tokenizer=tiny_models.tokenizer(), policies=FAMILIES, max_length=64, progress=False)
    model = tiny_models.network("bert") if model is None else model
    return calibrate(model, texts, **{**settings, **options})


def speed_of(policy: Any) -> float:
    """Of the paced machine, for long texts."""
    return 3 / sum(policy.shares(3))


@pytest.mark.usefixtures("paced")
def test_the_target_is_reached_with_the_least_loss(texts: list[str]) -> None:
    report = found(texts, target_speedup=1.4, evaluations=6)
    assert report.chosen.speedup >= 1.4
    # Six halvings come near.
    assert report.chosen.speedup < 1.45
    fast = [each for each in report.table if each.speedup >= 1.4]
    assert report.chosen.loss == min(each.loss for each in fast)
    assert report.chosen.family == "merge"
    assert len(report.table) == 12
    assert speed_of(report.policy) == pytest.approx(report.held_out.speedup, rel=0.1)
    assert report.accelerate().acceleration.prune == report.policy
    assert report.gains and report.nearest is report.chosen and not report.why
    assert (report.estimate, report.error) == (report.held_out.loss, report.held_out.error)


@pytest.mark.usefixtures("paced")
def test_the_drop_bounds_the_loss_with_its_error_and_the_fastest_wins(texts: list[str]) -> None:
    report = found(texts, max_drop=0.001, evaluations=6)
    chosen = report.chosen
    assert chosen.loss < chosen.loss + 1.64 * chosen.error < 0.001
    small = [each for each in report.table if each.at_most(0.95) <= 0.001]
    assert chosen.speedup == max(each.speedup for each in small) > 1.1
    assert report.holds == (report.held_out.at_most(0.95) <= 0.001)


@pytest.mark.usefixtures("paced")
def test_losses_are_those_of_the_embeddings(texts: list[str]) -> None:
    model = tiny_models.network("bert")
    report = found(texts, model, target_speedup=1.3, evaluations=2)
    tokenizer = tiny_models.tokenizer()
    dense, pruned = (
        torch.from_numpy(Embedder(net, tokenizer, max_length=64).embed(texts)).double()
        for net in (model, accelerate(model, prune=report.policy))
    )
    loss = 1 - torch.cosine_similarity(dense, pruned)
    # Both halves together are all texts.
    both = [report.chosen, report.held_out]
    assert [each.texts for each in both] == [30, 30]
    assert sum(each.loss for each in both) / 2 == pytest.approx(loss.mean().item(), abs=1e-6)
    pooled = math.sqrt(sum(each.error**2 for each in both) * 30 / 2)
    assert pooled == pytest.approx(loss.std().item(), rel=0.2)


@pytest.mark.usefixtures("paced")
def test_nothing_that_cannot_be_reached_is_returned(texts: list[str]) -> None:
    model = tiny_models.network("bert")
    report = found(texts, model, target_speedup=3.5, evaluations=3)
    assert re.search(r"no policy reaches 3\.50x .*the nearest is .*x, 1 - cosine", report.why)
    assert report.nearest.speedup == max(each.speedup for each in report.table)
    assert not report.gains and not report.holds and report.policy is report.chosen is report.held_out is None
    assert report.accelerate().acceleration.prune is None and nlp.restore(report.accelerate()) is model
    assert str(report).endswith(f"nothing gains: {report.why}") and "\n* " not in str(report)
    report = found(texts, target_speedup=1.5, max_drop=1e-6, evaluations=3)
    assert re.search(r"1\.50x with a 1 - cosine of at most 0\.00", report.why)
    fast = [each for each in report.table if each.speedup >= 1.5]
    assert report.nearest in fast
    # Without pruning nothing is lost.
    report = found(texts, max_drop=1e-6, evaluations=3)
    assert not report.gains and report.holds and report.estimate == report.at_most == 0


@pytest.mark.usefixtures("paced")
def test_a_classifier_is_judged_by_its_answers(texts: list[str]) -> None:
    model = tiny_models.network("bert", "ForSequenceClassification", num_labels=5)
    report = found(texts, model, target_speedup=1.5, evaluations=2)
    assert report.metric == "changed answers"
    ids = tiny_models.tokenizer()(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        dense, pruned = (
            net(**ids).logits.argmax(-1) for net in (model, accelerate(model, prune=report.policy, task="cls"))
        )
    changed = report.chosen.loss * 30 + report.held_out.loss * 30
    assert changed == pytest.approx(float((dense != pruned).sum()))
    labels = dense.tolist()
    right = found(texts, model, target_speedup=1.5, evaluations=2, labels=labels)
    assert right.metric == "accuracy lost"
    assert right.chosen.loss == pytest.approx(report.chosen.loss)
    # All answers were wrong, some are right now.
    wrong = found(texts, model, target_speedup=1.5, evaluations=2, labels=[9] * len(texts))
    assert wrong.chosen.loss == 0
    # Thirty texts without a change do not prove that there is none.
    assert wrong.chosen.error == pytest.approx((1 / 32 * 31 / 32 / 30) ** 0.5)
    assert "points" in str(report)


@pytest.mark.usefixtures("paced")
def test_a_metric_of_the_caller(texts: list[str]) -> None:
    seen: set[int] = set()

    def metric(output: Any, mask: torch.Tensor, positions: list[int]) -> torch.Tensor:
        seen.update(positions)
        return output.kept[-1].double() / mask.sum(1)

    report = found(texts, target_speedup=1.3, evaluations=2, metric=metric)
    assert seen == set(range(len(texts)))
    assert report.metric == "score lost"
    assert 0.2 < report.chosen.loss < 0.7
    with pytest.raises(ValueError, match=r"one score for each of the \d+ texts, got \[\]"):
        found(texts, target_speedup=1.3, metric=lambda *_: torch.tensor(1.0))


@pytest.mark.usefixtures("paced")
def test_the_report_reads(texts: list[str]) -> None:
    report = found(texts, target_speedup=1.3, max_drop=0.5, evaluations=3)
    text = str(report)
    assert text.count("\n* ") == 1
    assert f"chosen: {report.policy}" in text
    assert "on 30 texts that were not searched on" in text
    assert len([line for line in text.splitlines() if "x  " in line]) == len(report.table)
    assert text.endswith("holds") == report.holds


@pytest.mark.usefixtures("paced")
def test_halves_depend_on_the_seed(texts: list[str]) -> None:
    first, same, other = (found(texts, target_speedup=1.3, evaluations=1, seed=seed).table for seed in (0, 0, 1))
    assert [each.loss for each in first] == [each.loss for each in same]
    assert [each.loss for each in first] != [each.loss for each in other]


def test_short_texts_gain_nothing(texts: list[str]) -> None:
    report = found(tiny_models.sentences(40, 20), target_speedup=1.2, policies=None)
    assert re.search(r"of \d+ tokens in the mean, with 0% of all .*min_tokens = 64; .* at most 1", report.why)
    assert not report.gains and report.table == () and report.nearest is None and not report.holds
    assert report.accelerate().acceleration.prune is None and report.why in str(report)
    single = found(texts, tiny_models.network("bert", num_hidden_layers=1), max_drop=0.1, policies=None)
    assert not single.gains and single.why == "tokens leave between layers, and the network has 1"
    with pytest.raises(ValueError, match="texts must be at least 20, half to search on and half held out, got 0"):
        found([], max_drop=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "max_drop or target_speedup must be given"),
        ({"max_drop": 0.0}, "max_drop must be a number above 0"),
        ({"max_drop": float("nan")}, "max_drop must be a number above 0"),
        ({"target_speedup": 1.0}, "target_speedup must be a number above 1"),
        ({"max_drop": 0.1, "confidence": 1.0}, "confidence"),
        ({"max_drop": 0.1, "evaluations": 0}, "evaluations"),
        ({"max_drop": 0.1, "policies": []}, "at least one family"),
        ({"max_drop": 0.1, "labels": [1]}, "labels must be None for BertModel"),
        ({"max_drop": 0.1, "pooling": "max"}, "pooling must be one of"),
    ],
)
def test_wrong_arguments_are_refused(texts: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(texts, **options)


def test_wrong_kinds_are_refused(texts: list[str]) -> None:
    with pytest.raises(TypeError, match="Family objects, got Merge"):
        found(texts, max_drop=0.1, policies=[Merge(0.5)])
    with pytest.raises(TypeError, match="positional"):
        calibrate(tiny_models.network("bert"), texts, 0.1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="metric must be a function"):
        found(texts, max_drop=0.1, metric="cosine")
    with pytest.raises(ValueError, match="metric must be given for BertForTokenClassification"):
        found(texts, tiny_models.network("bert", "ForTokenClassification"), max_drop=0.1)


def test_times_are_really_taken(texts: list[str]) -> None:
    # A tiny network may be slower with a policy than without.
    table = found(texts, target_speedup=1.2, evaluations=1, repeats=1).table
    assert table and all(each.seconds > 0 and 0 < each.speedup < 100 for each in table)


def test_times_are_medians_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def call(number: int, cost: float) -> Any:
        def run(batch: int) -> None:
            order.append((number, batch))
            # Once in a while the machine does something else.
            clock[0] += cost * (batch + 1) + (100 if len(order) % 7 == 0 else 0)

        return run

    monkeypatch.setattr("nlp.tuning.timing.seconds", lambda device: clock[0])
    assert in_turn([call(0, 2.0), call(1, 1.0)], 3, 5, torch.device("cpu")) == [12.0, 6.0]
    assert order[4:8] == [(1, 0), (0, 0), (0, 0), (1, 0)]


def test_families_are_monotone_and_fit(texts: list[str]) -> None:
    for causal in (False, True):
        for n_layers in (2, 3, 6, 12, 24):
            for family in families(n_layers, causal, 8):
                weak, strong = family.make(0.03), family.make(0.97)
                for policy in (weak, strong):
                    policy.check(n_layers, causal)
                    assert policy.min_tokens == 8
                if isinstance(weak, (Cascade, Merge)):
                    assert sum(weak.shares(n_layers)) > sum(strong.shares(n_layers))
    assert not families(1, False, 8)
    assert not [family for family in families(6, True, 8) if "Merge" in family.name]


def test_choose_prefers_what_was_asked_for() -> None:
    def candidate(speedup: float, loss: float, error: float) -> Candidate:
        return Candidate("one", Merge(0.5), speedup, 1.0, loss, error, (1.0,), 10)

    slow, fast, unsure = candidate(1.2, 0.01, 0.001), candidate(1.5, 0.03, 0.001), candidate(1.4, 0.018, 0.01)
    table = (slow, fast, unsure)
    assert module.choose(table, 0.02, None, 0.95, "loss") == (slow, "")
    assert module.choose(table, None, 1.3, 0.95, "loss") == (unsure, "")
    assert module.choose(table, 0.04, 1.1, 0.95, "loss") == (fast, "")
    nearest, why = module.choose(table, 0.02, 1.3, 0.95, "loss")
    assert nearest is fast and re.search(r"1\.30x with a loss of at most 0\.0200 .* 1\.50x", why)
