"""What a file says: where its weights are, and who wrote them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pointcloud.checkpoints.read import checkpoint_of, read_checkpoint

STATE = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("content", "within"),
    [
        (STATE, ""), ({"state_dict": STATE, "epoch": 1}, "state_dict"), ({"model_state": STATE}, "model_state"),
        ({"model": {"state_dict": STATE, "args": None}}, "model.state_dict"),
        ({"model": {f"module.{k}": v for k, v in STATE.items()}}, "model"),
        ({f"module._orig_mod.{k}": v for k, v in STATE.items()}, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_places(content: dict, within: str, zipped: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.within == within and found.name == str(tmp_path / "a.pth")
    assert found.tensors.keys() == STATE.keys() and torch.equal(found.tensors["conv.weight"], STATE["conv.weight"])
    save_file(STATE, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors").tensors.keys() == STATE.keys()


def test_what_it_says_of_its_writer(tmp_path: Path) -> None:
    state = OrderedDict({f"module.{key}": value for key, value in STATE.items()})
    state._metadata = {"": {"version": 1}, "module.conv": {"version": 2}, "x": None}  # type: ignore[attr-defined]
    torch.save({"model_state": state, "version": "pcdet+0.3.0+0"}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth").evidence
    assert found.writers == {"pcdet": "0.3.0"} and found.layer_versions["conv"] == 2
    assert found.keys == tuple(STATE)
    meta = {"mmdet3d_version": "1.1.0", "CLASSES": ("a", "b"), "mmcv_version": 3}
    found_again = checkpoint_of({"state_dict": STATE, "meta": meta})
    assert found_again.evidence.writers == {"mmdet3d": "1.1.0"} and found_again.class_names == ("a", "b")
    assert checkpoint_of({"state_dict": STATE, "meta": {"dataset_meta": {"classes": [1]}}}).class_names == ()


@pytest.mark.parametrize("content", [{}, [1], {"state_dict": {}}, {"a": {"b": {}}}, 3], ids=str)
def test_no_state_dict(content: object) -> None:
    with pytest.raises(ValueError, match="it must hold a state dict, itself or as state_dict"):
        checkpoint_of(content, "it")


def test_other_things_beside_tensors() -> None:
    with pytest.raises(ValueError, match="must hold tensors, got int for 'epoch'"):
        checkpoint_of({**STATE, "epoch": 3})
