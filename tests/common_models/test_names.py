"""Suggestions for names that nobody knows."""

from __future__ import annotations

import pytest

from common_models.names import did_you_mean


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minkunt14", "; did you mean 'minkunet14'?"),
        ("luma", ""),
        ("tsm-motion", "; did you mean 'tsm-motion-digits' or 'tsm-motion-letters'?"),
        ("", ""),
    ],
)
def test_suggestions(name: str, expected: str) -> None:
    assert did_you_mean(name, ["minkunet14", "tsm-motion-digits", "tsm-motion-letters"]) == expected


def test_the_cutoff_is_honoured() -> None:
    assert did_you_mean("abcd", ["abxy"], cutoff=0.4) and not did_you_mean("abcd", ["abxy"], cutoff=0.9)


def test_any_iterable_will_do() -> None:
    assert did_you_mean("every", (name for name in ("ever", "never"))).startswith("; did you mean 'ever'")
