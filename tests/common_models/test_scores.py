"""The most probable classes, best first."""

from __future__ import annotations

import torch

from common_models.scores import ClassScore, best_classes

NAMES = ("road", "car", "person")


def test_best_first_and_no_more_than_there_are() -> None:
    found = best_classes(torch.tensor([0.25, 0.5, 0.25]), NAMES, 2)
    assert found == [ClassScore("car", 0.5), ClassScore("road", 0.25)]  # of equals the first
    assert [score.label for score in best_classes(torch.tensor([0.1, 0.2, 0.7]), NAMES, 9)] == ["person", "car", "road"]
    assert best_classes(torch.empty(0), (), 5) == []


def test_the_former_name_still_works() -> None:
    assert ClassScore("car", 0.5).name == "car"
