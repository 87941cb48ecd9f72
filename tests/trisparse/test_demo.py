"""The demonstration on small clouds: its table is honest and its page shows everything."""

from __future__ import annotations

import re
import subprocess
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

import nlp
import pointcloud
from pointcloud.simulate import CLASSES, Sensor
from trisparse import demo
from trisparse.clouds import load_segmenter
from trisparse.demo import clips, comparison, kernels, peer, scenes, videos

from ..nlp import tiny_models
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
    clip = write_clip(tmp_path / "clip.mp4", 24, still_from=8)
    monkeypatch.setattr(videos, "fixed_camera", lambda folder: (clips.Footage("fixed", "Fixed", clip), []))
    monkeypatch.setattr(videos, "moving_camera", lambda: (None, []))
    monkeypatch.setattr(videos, "MOTIONS", (0, 3, 1))
    monkeypatch.setattr(videos, "ROUNDS", 1)
    # All is compiled by the time of these tests, and other processes would take their core.
    monkeypatch.setattr(kernels, "_n_cores", lambda: 1)
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
    names |= {"fixed.png", "digits.mp4", "digits.png", "dropped.png", "merged.png"}
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
    # Two sweeps, spconv, the ImageNet network, short sentences; texts in bf16 where this processor has no use for it.
    narrow = nlp.accelerate(tiny_models.bert(), dtype="fastest").acceleration.dtype != torch.bfloat16
    assert result.stdout.count("skipped: ") == 5 + narrow
    assert ("skipped: language in bf16" in result.stdout) == narrow
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

    def wrong(model: torch.nn.Module, *, dtype: Any = None) -> torch.nn.Module:
        fast = accelerate(model, dtype=dtype)
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
    scenes.draw_scene(found)
    assert found.picture.is_file() and found.ply.is_file()
    unlabelled = float((labels < 0).double().mean())
    assert found.accuracy == pytest.approx(1 - unlabelled) and 0 < found.mean_iou <= 1
    assert scenes.label_scene(scenes.Scene("some", "Some", plain, {}), segmenter, tmp_path).accuracy is None


def test_rows_of_video_tell_what_was_done(quick: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = videos.videos(tmp_path, lambda text: None)
    assert [clip.source for clip in found.clips] == ["clip.mp4", "digits.mp4"]
    for clip in found.clips:
        dense, fast, _, changed, half = clip.rows
        assert dense.speedup is None and dense.same is None
        assert fast.same == 1.0 and changed.same >= 0.9 and half.same >= 0.9
        assert all(row.seconds > 0 and len(row.answers) == len(dense.answers) == row.computed for row in (dense, fast))
        assert clip.picture.is_file()
        count = len(dense.answers)
        assert f"of {count} frames: " in clip.answers and "Calibration: skipping" in clip.calibration
    assert f"on the first {min(24, videos.CALIBRATION)} frames" in found.clips[0].calibration
    assert [cells[0] for cells in found.cells()[:3]] == ["Fixed", "", ""]
    assert "names 3 of 3 motions" in found.motion
    assert all(len(cells) == len(videos.HEADER) for cells in found.cells())


def test_quick(quick: Path, tmp_path: Path) -> None:
    """One real sweep, one clip, no whole network of spconv's layers; what convinces comes first."""
    pytest.importorskip("matplotlib")
    page = demo.run(tmp_path / "out", str(save_tiny(tmp_path / "w.safetensors", CLASSES)), quick=True)
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"kitti.ply", "kitti.png", "report.html", "fixed.png", "dropped.png", "merged.png"}
    text = page.read_text(encoding="utf-8")
    assert "not in a quick demonstration" in text and "MinkUNet 0.5, maps rebuilt" not in text
    order = [
        text.index(part) for part in ("KITTI, real", "Video: every frame", "Language: texts", "spconv and trisparse")
    ]
    assert order == sorted(order)


def test_first_result_comes_before_its_picture(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(shown: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(scenes, "draw_scene", fail)
    with pytest.raises(ZeroDivisionError):
        demo.run(tmp_path / "out", str(save_tiny(tmp_path / "w.safetensors", CLASSES)))
    printed = capsys.readouterr().out
    assert "KITTI, real" in printed and " points, " in printed and "road" in printed


def test_groups_of_kernels_compile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are run by the parts of these tests."""
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert kernels.main(["products", "rays"])
    assert capsys.readouterr().out.split() == ["products", "rays"]


def test_a_process_compiles_as_the_demonstration_starts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", kernels.COMMAND, "products"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["products"]


def test_a_group_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    called = []
    monkeypatch.setattr(kernels, "GROUPS", {"bad": fail, "good": lambda: called.append("good")})
    assert not kernels.main(["bad", "good"])
    assert called == ["good"] and capsys.readouterr().out.split() == ["bad", "good"]


@pytest.mark.parametrize("cores, workers", [(1, 0), (2, 1), (3, 2), (64, 2)])
def test_waiting_ends_whatever_became_of_the_processes(
    cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_n_cores", lambda: cores)
    monkeypatch.setattr(kernels, "COMMAND", "import sys; print(sys.argv[1], flush=True); sys.exit(1)")
    with kernels.compiled_aside(("a", "b", "c")) as compilation:
        for group in "abc":
            compilation.wait(group)
        processes = compilation._workers
        assert len(processes) == workers
    assert all(process.poll() is not None for process in processes)


def test_fixed_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    reader = pytest.importorskip("video.reader")
    monkeypatch.setattr(clips, "FRAMES", 6)
    monkeypatch.setattr(clips, "PASSING", range(2, 4))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(clips.VARIABLE, raising=False)
    made, missing = clips.fixed_camera(tmp_path)
    assert len(missing) == 1 and clips.VARIABLE in missing[0]
    with reader.VideoReader(made.path) as whole:
        beginning = clips.Beginning(whole, 4)
        frames = [frame.rgb().float() for frame in beginning.frames()]
        assert len(whole) == 6 and len(beginning) == len(frames) == len(beginning.packets[0]) == 4
        assert [frame.index for frame in beginning.decode([2])] == [2] and beginning.keyframes == [0]
        # Nothing moves but what passes.
        assert (frames[1] - frames[0]).abs().mean() < 3 < (frames[2] - frames[1]).abs().mean()
    real = tmp_path / "clips" / clips.FIXED
    real.parent.mkdir()
    real.touch()
    monkeypatch.setenv(clips.VARIABLE, str(real.parent))
    assert clips.fixed_camera(tmp_path) == (clips.Footage("fixed", "Fixed camera: the Earth at night", real), [])


def test_moving_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, missing = clips.moving_camera()
    assert found is None and "trisparse[clips]" in missing[0]
