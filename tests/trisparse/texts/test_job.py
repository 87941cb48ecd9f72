"""What the jobs on texts share: settings, and errors that name the option which gave an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")

from common_models.errors import ArgumentError
from nlp import prune
from trisparse.commands.classify_text import ClassifyTextOptions
from trisparse.texts import sources
from trisparse.texts.classify import ClassifyJob


@pytest.fixture
def text(tmp_path: Path) -> list[sources.Source]:
    (tmp_path / "a.txt").write_text("one\n")
    return sources.plan([str(tmp_path / "a.txt")])


def job(text: list[sources.Source], **options: Any) -> ClassifyJob:
    return ClassifyJob(ClassifyTextOptions(**{"model": "m", "dtype": "fp32", **options}), text)


@pytest.mark.parametrize(
    ("error", "prunes", "message"),
    [
        (
            ArgumentError("max_length", "must be at most 512, got 600"),
            None,
            "--max-length must be at most 512, got 600",
        ),
        (ArgumentError("model", "must tell classes"), None, "--model must tell classes"),
        (ArgumentError("name_or_path", "is x", ("download=True", "y")), None, "--model is x; --download y"),
        (ArgumentError("layers", "must be 1"), "merge:0.5", "--prune merge:0.5: layers must be 1"),
        (ArgumentError("prune", "must be None"), "merge", "--prune merge:0.5: prune must be None"),
        (ArgumentError("theta", "must be 1"), "merge:0.5", "theta must be 1"),  # not of this policy
        (ArgumentError("top", "must be 1"), None, "top must be 1"),
        (ValueError("model must max_length must"), "merge", "model must max_length must"),
    ],
)
def test_errors_name_the_option(
    text: list[sources.Source], monkeypatch: pytest.MonkeyPatch, error: Exception, prunes: str | None, message: str
) -> None:
    import nlp.texts.classifier

    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(nlp.texts.classifier.TextClassifier, "load", load)
    with pytest.raises(ValueError) as caught:
        job(text, prune=prunes).load()
    assert str(caught.value) == message


def test_what_a_policy_says_of_a_causal_network_is_about_the_policy() -> None:
    with pytest.raises(ArgumentError, match=r"^Merge cannot serve a causal network") as caught:
        prune.Merge(0.5).check(4, True)
    assert caught.value.argument == type(prune.Merge(0.5)).__name__


def test_settings_are_what_results_depend_on(text: list[sources.Source]) -> None:
    first = job(text).settings
    assert first == job(text, batch_tokens=7, invalid="skip", overwrite=False, threads=3).settings
    for other in (
        {"model": "n"}, {"dtype": "bf16"}, {"max_length": 9}, {"overflow": "split"}, {"prune": "mass"}, {"top": 2},
        {"whole_file": True},
    ):  # fmt: skip
        assert job(text, **other).settings != first, other
