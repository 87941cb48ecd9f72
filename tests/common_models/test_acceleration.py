"""What was done to a network, and the way back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from common_models.acceleration import Acceleration, check_not_accelerated, restore


def accelerated(original: nn.Module) -> nn.Module:
    fast = copy.deepcopy(original)
    fast.acceleration = Acceleration(
        dtype=torch.bfloat16, changed=["0"], left={"1": "it carries hooks"}, original=original
    )
    return fast


def test_restore_is_the_very_object() -> None:
    original = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    fast = accelerated(original)
    assert restore(fast) is original and restore(original) is original
    assert restore(copy.deepcopy(fast)) is original  # a copy was made from the same network
    assert "original" not in dict(fast.named_modules()) and len(fast.state_dict()) == len(original.state_dict())


def test_a_pickle_leaves_the_original_out() -> None:
    fast = pickle.loads(pickle.dumps(accelerated(nn.Linear(2, 2))))
    assert fast.acceleration.changed == ["0"]
    with pytest.raises(ValueError, match="pickled without it: load that network"):
        restore(fast)


def test_what_it_says() -> None:
    text = str(accelerated(nn.Linear(2, 2)).acceleration)
    assert text.splitlines() == ["1 modules changed; computes in bf16", "  left: 1: it carries hooks"]


def test_twice_is_refused() -> None:
    check_not_accelerated(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"must not be accelerated already: restore\(model\) gives the original"):
        check_not_accelerated(accelerated(nn.Linear(2, 2)))
