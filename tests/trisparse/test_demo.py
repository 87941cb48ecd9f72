"""The demonstration on small clouds: its table is honest and its page shows everything."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("jinja2")
pytest.importorskip("tqdm")

import pointcloud
from pointcloud.simulate import CLASSES, Sensor
from trisparse.clouds import load_segmenter
from trisparse.demo import comparison, peer, scenes, videos

from .conftest import save_tiny, street, write_clip
from .test_demo_language import small_network

Run = Callable[..., Any]
SENSOR = Sensor("small", tuple(np.linspace(-25.0, 8.0, 16).tolist()), 90, 1.8, 60.0, 1.0, 0.02, 0.0, 200.0, 0.3)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A demonstration of seconds: few beams, large voxels, and a folder of real sweeps that holds one."""
    simulate = scenes.simulate_sweep
    monkeypatch.setattr(scenes, "simulate_sweep", lambda seed, sensor: simulate(seed, SENSOR))
    monkeypatch.setattr(comparison, "SECONDS", 0.0)
    monkeypatch.setattr(comparison, "VOXEL_SIZE", 0.5)
    data = tmp_path / "data" / "pointcloud"
    data.mkdir(parents=True)
    street().tofile(data / "kitti_000008.bin")
    monkeypatch.setenv("TRISPARSE_DATA", str(data.parent))
    pytest.importorskip("av")
    pytest.importorskip("sklearn")
    clip = write_clip(tmp_path / "carphone_pristine.mp4", 24, still_from=8)
    monkeypatch.setattr(videos, "find_clips", lambda: ({"carphone_pristine": clip}, []))
    monkeypatch.setattr(videos, "MOTIONS", (0, 3, 1))
    monkeypatch.setattr(videos, "ROUNDS", 1)
    monkeypatch.setattr(videos, "imagenet_weights", lambda: None)
    pytest.importorskip("transformers")
    small_network(monkeypatch)
    return data


def cloud(n: int = 500) -> pointcloud.PointCloud:
    return pointcloud.PointCloud(torch.from_numpy(street(n)[:, :3].copy()))


def test_demo(trisparse: Run, quick: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    model = save_tiny(tmp_path / "streets.safetensors", CLASSES)
    result = trisparse("demo", "-o", tmp_path / "out", "--model", model)
    assert result.exit_code == 0, result.stderr
    names = {"kitti.ply", "kitti.png", "report.html", "simulated.ply", "simulated.png"}
    names |= {"carphone_pristine.png", "digits.mp4", "digits.png", "dropped.png", "merged.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert result.stdout.rstrip().endswith(f"open {tmp_path / 'out' / 'report.html'}")
    assert "skipped: nuScenes" in result.stdout and "set TRISPARSE_DATA" in result.stdout

    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "mean IoU" in page and "nearer to the sensor than 1.2 m" in page and "Left out, and why" in page
    # Everything is in the page: nothing is fetched from elsewhere.
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    labelled = pointcloud.read_points(tmp_path / "out" / "simulated.ply")
    sweep = scenes.simulate_sweep(scenes.SEED, "hdl64")
    right = float((labelled.labels.numpy() == sweep.labels).mean())
    assert f"{right:.1%} of the points right" in result.stdout
    assert f"{100 * right:.1f} % of the points are right" in page
    for row in (
        "kernel map",
        "convolution 3×3×3, 64 → 64",
        "MinkUNet 0.5, maps rebuilt",
        "pixels changed by",
        "merged to 50%",
    ):
        assert row in result.stdout and row in page


def test_demo_without_comparison_and_data(
    trisparse: Run, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("TRISPARSE_DATA", str(tmp_path / "absent"))
    model = save_tiny(tmp_path / "<streets>.safetensors")
    result = trisparse("demo", "-o", tmp_path / "out", "--model", model, "--no-compare")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("skipped: ") == 5  # two sweeps, spconv, the ImageNet network, short sentences
    # Its classes are not the simulator's: there is no accuracy to speak of.
    assert "of the points right" not in result.stdout
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;streets&gt;" in page and "<streets>" not in page


def test_demo_into_a_file(trisparse: Run, quick: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    result = trisparse("demo", "-o", tmp_path / "taken", "--model", save_tiny(tmp_path / "w.safetensors"))
    assert result.exit_code == 2 and "taken" in result.stderr and "Traceback" not in result.stderr


def test_comparison_with_spconv(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spconv.pytorch")
    monkeypatch.setattr(comparison, "SECONDS", 0.0)
    monkeypatch.setattr(comparison, "VOXEL_SIZE", 0.5)
    found = comparison.compare(cloud())
    assert found.skipped == []
    assert all(row.agrees and len(row.seconds) == 3 and row.median == sorted(row.seconds)[1] for row in found.rows)
    assert [row.library for row in found.rows] == ["spconv", *["trisparse"], "spconv", *["trisparse"] * 2] + [
        "spconv",
        *["trisparse"] * 2,
    ]
    for row in found.rows:
        first = next(other for other in found.rows if other.kind == row.kind)
        assert row.speedup == (None if row.library == "spconv" else pytest.approx(first.median / row.median))
    assert all(len(cells) == len(comparison.HEADER) for cells in found.cells())


def test_no_speed_up_for_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spconv.pytorch")
    monkeypatch.setattr(comparison, "SECONDS", 0.0)
    monkeypatch.setattr(comparison, "VOXEL_SIZE", 0.5)
    accelerate, build = pointcloud.accelerate, comparison.kernel_map

    def wrong(model: torch.nn.Module, dtype: Any = None) -> torch.nn.Module:
        fast = accelerate(model, dtype)
        with torch.no_grad():
            next(fast.parameters()).mul_(1.5)
        return fast

    monkeypatch.setattr(pointcloud, "accelerate", wrong)
    dilated = partial(build, dilation=2)
    monkeypatch.setattr(comparison, "kernel_map", dilated)
    found = comparison.compare(cloud())
    ours = [row for row in found.rows if row.library == "trisparse"]
    assert not any(row.agrees for row in ours) and all(row.speedup is None for row in ours)
    assert {row.agreement.split(":")[0] for row in ours} == {"OTHER PAIRS", "DOES NOT AGREE"}


def test_comparison_without_spconv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    monkeypatch.setattr(comparison, "SECONDS", 0.0)
    monkeypatch.setattr(comparison, "VOXEL_SIZE", 0.5)
    found = comparison.compare(cloud())
    assert {row.library for row in found.rows} == {"trisparse"}
    assert all(row.speedup is None and row.agrees for row in found.rows)
    assert len(found.skipped) == 1 and "trisparse[bench]" in found.skipped[0]
    assert "spconv is not here" in found.caption


def test_pairs_are_counted_by_hand() -> None:
    table = torch.full((27, 2), -1, dtype=torch.int32)
    table[13] = torch.tensor([0, 1])
    table[4, 1] = 0
    table[22, 0] = 1
    assert peer.table_keys(table).tolist() == [4 * 4 + 1, 13 * 4, 13 * 4 + 3, 22 * 4 + 2]
    pairs = torch.full((2, 27, 2), -1, dtype=torch.int32)
    pairs[0, 4, 0], pairs[1, 4, 0] = 0, 1
    counts = torch.zeros(27, dtype=torch.int32)
    counts[4] = 1
    built = (torch.zeros(2, 4), pairs, counts)
    assert torch.equal(peer.pair_keys(built), peer.table_keys(table))


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), comparison.one_setting(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_accuracy_is_against_the_truth(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    segmenter = load_segmenter(str(save_tiny(tmp_path / "w.safetensors", CLASSES)), "fp32")
    plain = cloud()
    labels = segmenter(plain).labels
    known = pointcloud.PointCloud(plain.xyz, labels=labels.clamp(min=0))
    scene = scenes.Scene("some", "Some", known, {})
    found = scenes.label_scene(scene, segmenter, tmp_path)
    unlabelled = float((labels < 0).double().mean())
    assert found.accuracy == pytest.approx(1 - unlabelled) and 0 < found.mean_iou <= 1
    assert scenes.label_scene(scenes.Scene("some", "Some", plain, {}), segmenter, tmp_path).accuracy is None


def test_rows_of_video_tell_what_was_done(quick: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = videos.videos(tmp_path, lambda text: None)
    assert [clip.source for clip in found.clips] == ["carphone_pristine.mp4", "digits.mp4"]
    for clip in found.clips:
        dense, fast, _, changed, half = clip.rows
        assert dense.speedup is None and dense.same is None
        assert fast.same == 1.0 and changed.same >= 0.9 and half.same >= 0.9
        assert all(row.seconds > 0 and len(row.answers) == len(dense.answers) == row.computed for row in (dense, fast))
        assert clip.picture.is_file()
    assert "names 3 of 3 motions" in found.motion
    assert all(len(cells) == len(videos.HEADER) for cells in found.cells())
