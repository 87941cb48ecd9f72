"""Weights files: what is written comes back, and what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common_models import pretrained
from common_models.acceleration import Acceleration

CARD = {"description": "halves", "architecture": "Linear"}


def written(path: Path, model: nn.Module | None = None) -> nn.Module:
    model = nn.BatchNorm1d(3) if model is None else model
    pretrained.write_weights(path, model.state_dict(), CARD, "video")
    return model


def test_round_trip(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    nn.init.normal_(model[1].weight)
    written(tmp_path / "a.safetensors", model)
    with torch.device("meta"):
        other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    pretrained.load_fitting(tmp_path / "a.safetensors", pretrained.read_state(tmp_path / "a.safetensors"), other)
    pretrained.round_like_saved(model)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value) and other.state_dict()[key].dtype == value.dtype, key
    assert pretrained.read_card(tmp_path / "a.safetensors", "video") == CARD
    assert pretrained.domain_of(tmp_path / "a.safetensors") == "video"


def test_matrices_are_kept_where_half_is_false(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, 1e9)
    pretrained.write_weights(tmp_path / "a.safetensors", model.state_dict(), CARD, "video", half=False)
    assert torch.equal(pretrained.read_state(tmp_path / "a.safetensors")["weight"], model.weight)


def test_tensors_reach_modules_whose_loader_was_replaced() -> None:
    class Deaf(nn.Linear):
        def _load_from_state_dict(self, *args: object) -> None:
            pass

    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    with torch.device("meta"):
        other = nn.Sequential(Deaf(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    other[0].weight.requires_grad_(False)
    pretrained.give_tensors(other, model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = written(path, nn.Linear(64, 64))
    with torch.device("meta"):
        other = nn.Linear(64, 64)
    pretrained.load_fitting(path, pretrained.read_state(path), other)
    before = other.weight.clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(other.weight, before) and model is not other


def test_channels_last_weights_are_written(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    written(tmp_path / "a.safetensors", conv)
    assert torch.equal(pretrained.read_state(tmp_path / "a.safetensors")["weight"], conv.weight.half())


def test_only_its_own_domain_reads_a_file(tmp_path: Path) -> None:
    written(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds a network of video, read it with video.load_pretrained"):
        pretrained.read_card(tmp_path / "a.safetensors", "nlp")
    # A file from before the header named the domain is anyone's to try.
    save_file({"x": torch.ones(1)}, tmp_path / "old.safetensors", metadata={"card": json.dumps(CARD)})
    assert pretrained.read_card(tmp_path / "old.safetensors", "nlp") == CARD
    assert pretrained.domain_of(tmp_path / "old.safetensors") is None


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not a file of tensors")
    for read in (lambda: pretrained.read_card(path, "video"), lambda: pretrained.read_state(path)):
        with pytest.raises(ValueError, match="is not a safetensors file"):
            read()
    assert pretrained.domain_of(path) is None
    save_file({"x": torch.ones(1)}, path)
    assert pretrained.read_card(path, "video") is None
    for text in ("{", "[1]"):
        save_file({"x": torch.ones(1)}, path, metadata={"card": text})
        with pytest.raises(ValueError, match="its model card"):
            pretrained.read_card(path, "video")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(2, 3)}, "lacks 1 tensors, 'bias' first"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "c": torch.ones(1)}, "has unknown 1 tensors, 'c' first"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, r"weight must be \[2, 3\], got \[3, 2\]"),
        ({"weight": torch.ones(2, 3, dtype=torch.int32), "bias": torch.ones(2)}, "weight must be floating-point"),
    ],
    ids=["missing", "unknown", "shape", "integers"],
)
def test_tensors_that_do_not_fit(state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrained.load_fitting(Path("a.safetensors"), state, nn.Linear(3, 2))


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_matrices_beyond_fp16(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"w must be finite and within ±65504, the range of fp16"):
        pretrained.write_weights(tmp_path / "a.safetensors", {"w": torch.full((1, 1), value)}, CARD, "nlp")
    assert list(tmp_path.iterdir()) == []


def test_names(tmp_path: Path) -> None:
    written(tmp_path / "tsm-digits.safetensors")
    assert pretrained.list_weights(tmp_path) == ["tsm-digits"]
    assert pretrained.locate("tsm-digits", tmp_path) == tmp_path / "tsm-digits.safetensors"
    assert pretrained.locate(tmp_path / "tsm-digits.safetensors", Path("none")).is_file()
    with pytest.raises(ValueError, match="must be a file or one of tsm-digits, got 'tsm-digit'; did you mean"):
        pretrained.locate("tsm-digit", tmp_path)
    with pytest.raises(ValueError, match=r"one of \(there are none\)"):
        pretrained.locate("x", tmp_path / "empty")
    with pytest.raises(ValueError, match="must be a file"):
        pretrained.locate("../tsm-digits", tmp_path / "deeper")


def test_downloads_are_refused_where_there_are_none() -> None:
    pretrained.refuse_download(False)
    with pytest.raises(ValueError, match="download must be False"):
        pretrained.refuse_download(True)


def test_accelerated_networks_are_not_saved() -> None:
    model = nn.Linear(2, 2)
    pretrained.check_saveable(model)
    model.acceleration = Acceleration(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"got an accelerated one.*save restore\(model\)"):
        pretrained.check_saveable(model)
