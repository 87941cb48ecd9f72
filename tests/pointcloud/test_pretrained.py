"""Weights files: what goes in comes out, and files from others are refused with a reason."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import pointcloud
from pointcloud import pretrained
from pointcloud.pretrained import list_pretrained, load_pretrained, round_like_saved, save_pretrained
from pointcloud.segment import sweep_voxels
from tests.pointcloud.sweeps import street, tiny_card, tiny_network


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_pretrained(tiny_network(), path, tiny_card(recipe={"seed": 3}, results={"mean_iou": 0.5}))
    return path


def test_round_trip(saved: Path) -> None:
    model = tiny_network()
    found = load_pretrained(saved)
    assert not found.training
    assert found.card == tiny_card(recipe={"seed": 3}, results={"mean_iou": 0.5})
    state = found.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        expected = value.half().to(value.dtype) if value.ndim > 1 else value
        assert torch.equal(state[key], expected) and state[key].dtype == value.dtype
    round_like_saved(model)
    x, _ = sweep_voxels(street().xyz, 0.4)
    with torch.no_grad():
        assert torch.equal(found(x), model(x))
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_loaded_network_can_be_trained(saved: Path) -> None:
    model = load_pretrained(str(saved)).train()
    x, _ = sweep_voxels(street().xyz, 0.4)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    load_pretrained(saved)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_outlives_its_file(saved: Path) -> None:
    model = load_pretrained(saved)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_names(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "WEIGHTS", saved.parent)
    assert list_pretrained() == ["tiny"]
    assert load_pretrained("tiny").card == load_pretrained(saved).card
    with pytest.raises(ValueError, match=r"must be a file or one of tiny, got 'tinny'; did you mean 'tiny'\?"):
        load_pretrained("tinny")
    monkeypatch.setattr(pretrained, "WEIGHTS", saved.parent / "absent")
    assert list_pretrained() == []


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64, b"\x80\x96\x98\x00\x00\x00\x00\x00{}"], ids=repr)
def test_not_a_weights_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.safetensors is not a safetensors file"):
        load_pretrained(path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(tiny_network().state_dict(), path)
    with pytest.raises(ValueError, match=r"model\.pt is not a safetensors file"):
        load_pretrained(path)


def test_truncated(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_pretrained(saved)


def write(path: Path, card: Any, state: dict[str, torch.Tensor] | None = None) -> None:
    state = tiny_network().state_dict() if state is None else state
    save_file(state, path, metadata={"card": card if isinstance(card, str) else json.dumps(card)})


def arguments(**changes: Any) -> dict[str, Any]:
    return {"arguments": {**tiny_card().arguments, **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "os.system"}, "architecture must be one of MinkUNet, got 'os.system'"),
        (arguments(depth=17), "depth must be one of 14, 18, 34, got 17"),
        (arguments(width="wide"), "no MinkUNet can be built"),
        (arguments(hidden=3), "no MinkUNet can be built .*hidden"),
        (arguments(width=0.25), r"must be \[.*\], got \["),
        # What asks for terabytes is refused before they are allocated.
        (arguments(width=50000), r"must be \[.*\], got \["),
        (arguments(depth=18), "lacks .* tensors"),
        ({"class_names": None}, "its model card cannot be read"),
        ({"class_names": [1, 2, 3]}, "a field is of another type"),
        ({"voxel_size": 0}, "voxel_size in its card must be metres above 0, got 0"),
        ({"voxel_size": "small"}, "voxel_size in its card must be metres above 0, got 'small'"),
        ({"surprise": 1}, "its model card cannot be read: .*surprise"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_cards(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "w.safetensors"
    write(path, {**asdict(tiny_card()), **changes})
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(path)
    assert "w.safetensors" in str(caught.value)


@pytest.mark.parametrize("card", ["", "{", "[]", "null", '"text"', "{}"])
def test_cards_that_are_none(tmp_path: Path, card: str) -> None:
    path = tmp_path / "w.safetensors"
    write(path, card)
    with pytest.raises(ValueError, match=r"w\.safetensors: its model card (cannot be read|must be a JSON object)"):
        load_pretrained(path)


def test_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no model card"):
        load_pretrained(path)
    write(path, asdict(tiny_card()), {**tiny_network().state_dict(), "extra": torch.zeros(2)})
    with pytest.raises(ValueError, match="has unknown 1 tensors, 'extra' first"):
        load_pretrained(path)


def test_saving_is_whole_or_not_at_all(saved: Path) -> None:
    before = saved.read_bytes()
    model = tiny_network()
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"classifier\.weight must be finite and within ±65504"):
        save_pretrained(model, saved, tiny_card())
    with pytest.raises(TypeError):
        save_pretrained(tiny_network(), saved, tiny_card(results={"iou": object()}))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("name", list_pretrained())
def test_shipped_networks_load(name: str) -> None:
    model = load_pretrained(name)
    x, _ = sweep_voxels(street().xyz, model.card.voxel_size)
    with torch.inference_mode():
        assert bool(model(x).isfinite().all())
    assert pretrained.WEIGHTS.joinpath(f"{name}.safetensors").stat().st_size < 2e6
    assert 0 < model.card.results["mean_iou"] <= 1
    assert "seed" in model.card.recipe


def test_the_card_is_the_models_own_by_default(saved: Path) -> None:
    again = saved.with_name("again.safetensors")
    save_pretrained(load_pretrained(saved), again)
    before, after = load_pretrained(saved), load_pretrained(again)
    assert before.card == after.card
    assert all(torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values()))
    content = again.read_bytes()
    with pytest.raises(ValueError, match="card must be given for a model without the attribute `card`"):
        save_pretrained(tiny_network(), again)
    with pytest.raises(TypeError, match=r"card must be a pointcloud\.ModelCard, got PosixPath"):
        save_pretrained(tiny_network(), tiny_card(), again)  # type: ignore[arg-type]
    assert again.read_bytes() == content


def test_what_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    fast = pointcloud.accelerate(tiny_network())
    with pytest.raises(ValueError, match=r"got an accelerated one.*save restore\(model\)"):
        save_pretrained(fast, path, tiny_card())
    del fast.acceleration
    with pytest.raises(ValueError, match="must have the tensors of the MinkUNet that its card builds"):
        save_pretrained(fast, path, tiny_card())
    other = tiny_card(**arguments(num_classes=5))
    with pytest.raises(ValueError, match=r"got classifier\.weight \[3.*instead of \[5"):
        save_pretrained(tiny_network(), path, other)
    assert not path.exists()
    save_pretrained(pointcloud.restore(pointcloud.accelerate(tiny_network())), path, tiny_card())
    assert load_pretrained(path).card == tiny_card()


def test_the_header_names_the_domain(saved: Path, tmp_path: Path) -> None:
    with safe_open(saved, "pt") as file:
        assert file.metadata()["domain"] == "pointcloud"
    path = tmp_path / "w.safetensors"
    card = json.dumps(asdict(tiny_card()))
    save_file(tiny_network().state_dict(), path, metadata={"card": card, "domain": "video"})
    with pytest.raises(ValueError, match=r"holds a network of video, read it with video\.load_pretrained"):
        load_pretrained(path)


def test_nothing_is_downloaded() -> None:
    with pytest.raises(ValueError, match="download must be False"):
        load_pretrained("minkunet14-streets", download=True)
