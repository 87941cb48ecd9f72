"""An error knows its argument, and says the same under another name."""

from __future__ import annotations

import copy
import pickle

import pytest

from common_models.errors import ArgumentError


def test_the_message_begins_with_the_argument() -> None:
    error = ArgumentError("max_length", "must be at most 512, got 600")
    assert isinstance(error, ValueError) and error.argument == "max_length"
    assert str(error) == "max_length must be at most 512, got 600"
    assert error.named("--max-length") == "--max-length must be at most 512, got 600"


@pytest.mark.parametrize(
    ("problem", "between"), [("must be a or b, got 'c'", "; "), ("must be a or b, got 'ab'; did you mean 'a'?", " ")]
)
def test_a_remedy_has_another_name_too(problem: str, between: str) -> None:
    error = ArgumentError("name", problem, ("download=True", "fetches it"))
    assert str(error) == f"name {problem}{between}download=True fetches it"
    assert error.named("--model", "--download") == f"--model {problem}{between}--download fetches it"
    assert error.named("--model") == f"--model {problem}{between}download=True fetches it"


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_copies_are_the_same(copied: object) -> None:
    error = ArgumentError("top", "must be at least 1", ("top=1", "is one"))
    assert callable(copied)
    again = copied(error)
    assert str(again) == str(error) and again.argument == "top" and again.named("--top") == error.named("--top")
