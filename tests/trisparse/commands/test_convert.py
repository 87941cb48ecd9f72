"""`trisparse convert`: the file it writes, its card, and what it says of what it cannot use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from safetensors import safe_open
from safetensors.torch import load_file

import pointcloud
from pointcloud.checkpoints.sources import SOURCES as OF_LIBRARY
from tests.pointcloud.checkpoints.published import written
from tests.pointcloud.checkpoints.test_convert import written_by
from tests.pointcloud.checkpoints.test_load import file_of, network
from tests.pointcloud.checkpoints.test_standalone import detector
from trisparse.commands.convert import SOURCES

Run = Callable[..., Any]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "minkunet.pth"
    torch.save(file_of(network(), "mmdetection3d", "torchsparse"), path)
    return path


def fails(result: Any, *words: str, code: int) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("trisparse: error: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def card_in(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["card"])


def test_a_network_that_is_here(trisparse: Run, published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = trisparse("convert", published, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "a MinkUNet-14 of mmdetection3d" in result.stdout and "voxels of 0.05 m" in result.stdout
    assert "does not name its 7 classes" in result.stdout
    found = pointcloud.load_pretrained(out)
    for (key, a), b in zip(network().state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert found.card.voxel_size == 0.05 and found.card.class_names[1] == "class 1"
    recipe = found.card.recipe["converted"]
    assert recipe["checkpoint"] == "minkunet.pth" and len(recipe["sha256"]) == 64
    assert recipe["state_dict"] == "state_dict" and recipe["written_by"] == "mmdet3d 1.4.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["minkunet.pth", "out.safetensors"]


def test_options(trisparse: Run, published: Path, tmp_path: Path) -> None:
    out, half = tmp_path / "out.safetensors", tmp_path / "half.safetensors"
    assert trisparse("convert", published, "-o", out).exit_code == 0
    before = out.read_bytes()
    fails(trisparse("convert", published, "-o", out), "out.safetensors exists; --overwrite replaces it", code=2)
    assert out.read_bytes() == before
    digest = card_in(out)["recipe"]["converted"]["sha256"]
    options = ("--half", "--voxel-size", "0.1", "--sha256", digest[:12], "--source", "torchsparse")
    assert trisparse("convert", published, "-o", half, *options).exit_code == 0
    assert half.stat().st_size < 0.6 * out.stat().st_size and card_in(half)["voxel_size"] == 0.1
    assert load_file(half)["stem.0.weight"].dtype == torch.float16
    assert trisparse("convert", published, "-o", out, "--overwrite", "--voxel-size", "0.2").exit_code == 0
    assert card_in(out)["voxel_size"] == 0.2


@pytest.mark.parametrize("source", ["spconv", "spconv-1"])
def test_a_network_of_others(trisparse: Run, tmp_path: Path, source: str) -> None:
    model, again, path, out = detector(), detector(), tmp_path / "pv.pth", tmp_path / "out.safetensors"
    torch.save({"model_state": written_by(source, model), "version": "pcdet+0.6.0"}, path)
    result = trisparse("convert", path, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("detector of OpenPCDet; 5 sparse convolutions of spconv ")
    again.load_state_dict(load_file(out))
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert card_in(out)["recipe"]["converted"]["written_by"] == "pcdet 0.6.0"
    with pytest.raises(ValueError, match="holds the weights of detector of OpenPCDet, a network that is not in this"):
        pointcloud.load_pretrained(out)
    fails(trisparse("convert", path, "-o", out, "--overwrite", "--voxel-size", "1"), "--voxel-size goes into", code=1)


def test_another_network_in_the_spelling_of_one_that_is_here(trisparse: Run, tmp_path: Path) -> None:
    state = written(network(), "spvnas", "torchsparse")
    state["point_transforms.0.1.running_mean"] += 1
    torch.save({"model": state}, tmp_path / "init")
    out = tmp_path / "out.safetensors"
    result = trisparse("convert", tmp_path / "init", "-o", out)
    assert result.exit_code == 0 and "SPVCNN of spvnas" in result.stdout and "note: " in result.stdout, result.output
    assert "stage1.1.net.0.weight" in load_file(out)


def test_dense_and_tied_weights(trisparse: Run, tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    torch.save({"a": weight, "b": weight, "c": weight[1:]}, tmp_path / "a.pth")
    result = trisparse("convert", tmp_path / "a.pth", "-o", tmp_path / "b.safetensors")
    assert result.exit_code == 0 and "nothing to convert" in result.stdout, result.output
    found = load_file(tmp_path / "b.safetensors")
    assert torch.equal(found["b"], weight) and torch.equal(found["c"], weight[1:])


def test_what_cannot_be_converted(trisparse: Run, published: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "out.safetensors", tmp_path / "bad.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "hook": Evil()}, bad)
    fails(trisparse("convert", bad, "-o", out), "it names the code GLOBAL", "system", code=1)
    bad.write_bytes(b"<html>404</html>")
    fails(trisparse("convert", bad, "-o", out), "bad.pth is", code=1)
    torch.save({"a.weight": torch.ones(3, 3, 3, 32, 32)}, bad)
    fails(trisparse("convert", bad, "-o", out), "source must be given", "spconv-1", code=1)
    torch.save({"a.weight": torch.full((2, 2), 1e9)}, bad)
    fails(trisparse("convert", bad, "-o", out, "--half"), "range of fp16", code=1)
    fails(trisparse("convert", published, "-o", out, "--sha256", "0123456789"), "SHA-256 must begin with", code=1)
    for options, words in (
        (("-o", tmp_path / "out.pth"), "--output must end in .safetensors"),
        (("-o", tmp_path / "none" / "a.safetensors"), "does not exist"),
        (("-o", out, "--source", "torchsparce"), "--source must be one of"),
        (("-o", out, "--voxel-size", "0"), "--voxel-size must be metres above 0"),
    ):
        fails(trisparse("convert", published, *options), words, code=2)
    fails(trisparse("convert", tmp_path / "none.pth", "-o", out), "none.pth: no such file", code=2)
    fails(trisparse("convert", tmp_path, "-o", out), "a directory, but a checkpoint was expected", code=2)
    assert trisparse("convert", published).exit_code == 2
    assert trisparse("convert", published, "-o", out).exit_code == 0
    fails(trisparse("convert", out, "-o", out, "--overwrite"), "would overwrite the checkpoint", code=2)
    traced = trisparse("convert", bad, "-o", tmp_path / "x.safetensors", "--half", "--debug")
    assert traced.exit_code == 1 and "Traceback" in traced.stderr


def test_sources_are_those_of_the_library() -> None:
    assert set(SOURCES) == {*OF_LIBRARY, "mmcv"}
