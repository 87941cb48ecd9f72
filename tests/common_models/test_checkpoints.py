"""A training that was stopped ends where it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common_models import checkpoints

RUN = {"recipe": {"steps": 6, "rate": 0.1}, "variant": "past"}


def train(steps: range, model: nn.Module, optimizer: torch.optim.Optimizer, path: Path | None = None) -> None:
    for step in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        if path is not None:
            checkpoints.write(path, RUN, step + 1, model, optimizer)


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), 0.1)


def test_resumed_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    whole, optimizer = fresh()
    train(range(6), whole, optimizer)
    train(range(4), *fresh(), path)
    model, optimizer = fresh()
    done = checkpoints.resume(path, RUN, model, optimizer)
    assert done == 4
    train(range(done, 6), model, optimizer)
    assert torch.equal(model.weight, whole.weight) and torch.equal(model.bias, whole.bias)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({**RUN, "variant": "both"}, "its variant is 'past', here it is 'both'"),
        ({"recipe": {"steps": 7, "rate": 0.1}, "variant": "past"}, "its recipe is"),
        ({"recipe": RUN["recipe"]}, "its variant is 'past', here it is None"),
    ],
)
def test_another_run(tmp_path: Path, run: dict[str, Any], message: str) -> None:
    checkpoints.write(tmp_path / "a", RUN, 1, *fresh())
    with pytest.raises(ValueError, match=f"is the checkpoint of another run: {message}"):
        checkpoints.resume(tmp_path / "a", run, *fresh())


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_other_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a"
    if content is None:
        torch.save({"model": 1}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint of this training"):
        checkpoints.resume(path, RUN, *fresh())


def test_a_failing_write_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    checkpoints.write(path, RUN, 1, *fresh())
    before = path.read_bytes()

    def fail(content: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.write(path, RUN, 2, *fresh())
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["a"]


def test_progress_is_optional() -> None:
    assert list(checkpoints.shown(range(3), "training", 3, progress=False)) == [0, 1, 2]
    assert list(checkpoints.shown(range(1, 3), "training", 3, progress=True, first=1)) == [1, 2]
