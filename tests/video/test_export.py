"""ONNX files, run by onnxruntime: what leaves the library answers as what stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from video import export
from video.export import export_onnx
from video.models import TSM, create
from video.preprocess import IMAGENET_MEAN, Preprocess
from video.pretrained import ModelCard
from video.shift.insert import add_temporal_shift
from video.stream import Stream

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def backbone_of(name: str) -> nn.Module:
    """Few layers of each kind: the exporter's time grows with them."""
    if name == "resnet18":
        return create(name, num_classes=5, width=8, layers=(2, 1, 1, 1))
    first = create(name, width=0.25).features[:7]  # type: ignore[index]
    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


BACKBONES = ["resnet18", "mobilenet_v2"]


def tsm(backbone: str = "resnet18", direction: str = "both", shift: bool = True) -> TSM:
    torch.manual_seed(0)
    model = TSM(backbone_of(backbone), 5, 4, direction=direction, shift=shift)
    nn.init.normal_(model.new_fc.weight)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def open_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def clips(n: int, num_segments: int, size: tuple[int, int] = (48, 48), seed: int = 0) -> Tensor:
    return torch.randn(n, num_segments, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("backbone", "direction"), [("resnet18", "both"), ("mobilenet_v2", "past")])
def test_offline(tmp_path: Path, backbone: str, direction: str) -> None:
    model = tsm(backbone, direction)
    exported = export_onnx(model, tmp_path / "model.onnx", size=48)
    assert exported.error is not None
    assert exported.error <= 1e-4
    assert exported.inputs == {"clip": ("batch", 4, 3, 48, 48)}
    assert exported.outputs == {"logits": ("batch", 5)}
    session = open_session(exported.path)
    for n in (1, 3):
        clip = clips(n, 4)
        (logits,) = session.run(["logits"], {"clip": clip.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(clip), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_live_over_20_frames(tmp_path: Path, backbone: str) -> None:
    model = tsm(backbone, "past")
    exported = export_onnx(model, tmp_path / "live.onnx", live=True, size=(48, 64))
    session = open_session(exported.path)
    # Only the file's own words tell how to run it.
    metadata = session.get_modelmeta().custom_metadata_map
    pairs = json.loads(metadata["states"])
    shapes = {i.name: [3, *i.shape[1:]] for i in session.get_inputs()}
    feeds = {name: np.zeros(shapes[name], np.float32) for name, _ in pairs}
    stream, state = Stream(model), None
    for frame in clips(20, 3, (48, 64)):
        expected, state = stream.step(frame, state)
        names = ["logits", *(after for _, after in pairs)]
        logits, *after = session.run(names, {"frame": frame.numpy(), **feeds})
        feeds = {name: value for (name, _), value in zip(pairs, after, strict=True)}
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert state is not None
    for name, value in feeds.items():
        np.testing.assert_allclose(value, state.tensors[name.removeprefix("state.")], rtol=1e-4, atol=1e-4)


def test_metadata(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e")
    exported = export_onnx(
        tsm(direction="past"), tmp_path / "m", size=48, batch=2, class_names=names, preprocess=Preprocess(48, 64)
    )
    assert exported.inputs == {"clip": (2, 4, 3, 48, 48)}
    metadata = open_session(exported.path).get_modelmeta().custom_metadata_map
    assert metadata == exported.metadata
    assert json.loads(metadata["class_names"]) == list(names)
    assert {k: metadata[k] for k in ("kind", "num_segments", "fold_div", "direction")} == {
        "kind": "offline",
        "num_segments": "4",
        "fold_div": "8",
        "direction": "past",
    }
    stated = json.loads(metadata["preprocess"])
    assert (stated["size"], stated["resize"], stated["colors"]) == (48, 64, "RGB")


def test_metadata_of_a_network_with_a_card(tmp_path: Path) -> None:
    model = tsm()
    model.card = ModelCard(
        description="small", architecture="TSM", arguments={}, class_names=("a", "b", "c", "d", "e"), size=48
    )  # type: ignore[assignment]
    metadata = export_onnx(model, tmp_path / "m", size=48, batch=1).metadata
    assert json.loads(metadata["class_names"]) == ["a", "b", "c", "d", "e"]
    stated = json.loads(metadata["preprocess"])
    assert (stated["size"], stated["mean"]) == (48, list(IMAGENET_MEAN))


def test_a_users_network_with_shift_answers_per_frame(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = add_temporal_shift(backbone_of("resnet18").eval(), 4, direction="past")
    exported = export_onnx(model, tmp_path / "m", size=48)
    clip = clips(3, 4)
    (logits,) = open_session(exported.path).run(None, {"clip": clip.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits.reshape(12, 5), model(clip.flatten(0, 1)), rtol=1e-4, atol=1e-4)


def test_networks_without_shift(tmp_path: Path) -> None:
    model = backbone_of("resnet18").eval()
    exported = export_onnx(model, tmp_path / "m", size=48, live=True)
    assert exported.inputs == {"frame": ("batch", 3, 48, 48)}
    assert "direction" not in exported.metadata
    # The mean over the frames is part of it, and T with it.
    assert export_onnx(tsm(shift=False), tmp_path / "m", size=48).inputs == {"clip": ("batch", 4, 3, 48, 48)}


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    model, path = tsm(), tmp_path / "m"
    with pytest.raises(ValueError, match="a live network cannot read the frame to come"):
        export_onnx(model, path, live=True)
    with pytest.raises(ValueError, match="model must be fp32, got .* as torch.bfloat16"):
        export_onnx(tsm().bfloat16(), path)
    with pytest.raises(ValueError, match="model must be in evaluation mode, but TSM and .* in training mode"):
        export_onnx(tsm().train(), path)
    with pytest.raises(ValueError, match="batch, size and in_channels must be at least 1, got batch=0"):
        export_onnx(model, path, batch=0)
    with pytest.raises(ValueError, match="path must lie in an existing folder"):
        export_onnx(model, tmp_path / "absent" / "m")

    class DependsOnData(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ValueError, match="model cannot be exported: "):
        export_onnx(DependsOnData().eval(), path, size=8)
    assert os.listdir(tmp_path) == []


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    path = tmp_path / "m"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError, match="logits of onnxruntime differs from torch by"):
        export_onnx(backbone_of("resnet18").eval(), path, size=32)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["m"]


class Answer:
    """As transformers' outputs: an object that holds the logits."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Answering(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Answer:
        return Answer(self.model(x))


@pytest.mark.parametrize("live", [False, True])
def test_networks_that_return_an_object(tmp_path: Path, live: bool) -> None:
    model = add_temporal_shift(backbone_of("resnet18"), 4, direction="past")
    exported = export_onnx(Answering(model).eval(), tmp_path / "m", size=48, live=live, batch=1)
    assert exported.error is not None and exported.error < 1e-4
    assert next(iter(exported.outputs)) == "logits"


def test_size_and_class_names_fit_the_network(tmp_path: Path) -> None:
    model, path = tsm(), tmp_path / "m"
    model.card = ModelCard(description="small", architecture="TSM", arguments={}, class_names=tuple("abcde"), size=48)  # type: ignore[assignment]
    exported = export_onnx(model, path, batch=1)
    assert exported.inputs == {"clip": (1, 4, 3, 48, 48)}
    exported = export_onnx(model, path, batch=1, size=(32, 48))
    assert json.loads(exported.metadata["preprocess"])["size"] == [32, 48]
    with pytest.raises(ValueError, match="size must be that of preprocess, 48"):
        export_onnx(model, path, size=32, preprocess=Preprocess(48, 64))
    with pytest.raises(ValueError, match="class_names must name the 5 classes of the network, got 1"):
        export_onnx(model, tmp_path / "none", batch=1, class_names=["a"])
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="got the folder"):
        export_onnx(model, tmp_path)
