"""The scripts of examples/ run as they are, stay short, and show what they say."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script in this process, as `python examples/NAME.py ARGUMENTS` would; what it prints."""

    def start(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return start


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_short_and_say_what_they_show(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert text.startswith('"""') and path.name in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_segment_a_sweep(run: Run) -> None:
    out = run("segment_a_sweep")
    (right,) = re.findall(r"([\d.]+)% of the points have the class", out)
    assert float(right) > 80
    assert re.search(r"[\d,]+ road", out)


def test_segment_a_sweep_of_a_file(run: Run, tmp_path: Path) -> None:
    from pointcloud import write_ply
    from pointcloud.simulate import simulate_sweep

    cloud = simulate_sweep(seed=3, sensor="hdl32").to_cloud()
    write_ply(tmp_path / "scan.ply", cloud)
    assert f"{len(cloud):,} points" in run("segment_a_sweep", str(tmp_path / "scan.ply"))


def test_accelerate_your_sparse_network(run: Run) -> None:
    out = run("accelerate_your_sparse_network")
    (agreeing,) = re.findall(r"([\d.]+)% of \d+ rows", out)
    assert float(agreeing) > 95


def test_watch_a_crossing(run: Run) -> None:
    out = run("watch_a_crossing").splitlines()
    assert len(out) == 5 and " 100.0% of the work" in out[0] and " 100.0% of the work" not in out[-1]


def test_label_a_large_cloud(run: Run) -> None:
    out = run("label_a_large_cloud")
    assert "100.00% of the labels are those of the whole cloud" in out


def test_shift_and_stream(run: Run) -> None:
    out = run("shift_and_stream")
    assert "8 of 8 residual blocks shifted (blockres, past)" in out
    (difference,) = re.findall(r"differ by (\S+) at most", out)
    assert float(difference) < 1e-4


def test_skip_frames(run: Run) -> None:
    pytest.importorskip("av")
    out = run("skip_frames")
    done = out.split()[0]
    # The first frame, and all of the moving half but for a frame that looks like the one before.
    assert len(done) == 60 and done[0] == "#" and done[1:30].count("#") == 0 and done[30:].count("#") >= 25


def test_skip_frames_of_a_file(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from tests.video.clips import texture, write_clip

    clip = write_clip(tmp_path / "clip.mp4", [texture(0)] * 6 + [texture(9)] * 2)
    assert run("skip_frames", str(clip)).split()[0] == "#.....#."


@pytest.mark.parametrize("name", ["embed_texts", "prune_and_calibrate"])
def test_a_missing_network_is_named(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import nlp

    monkeypatch.setattr(nlp, "list_pretrained", lambda: [])
    with pytest.raises(SystemExit, match=re.escape("pip install '.[nlp,texts]'")):
        run(name)


def test_embed_texts(run: Run, minilm: None) -> None:
    assert "32 texts, 384 numbers each" in (out := run("embed_texts"))
    assert "\n  Point clouds from a laser scanner" in out


def test_prune_and_calibrate(run: Run, minilm: None) -> None:
    out = run("prune_and_calibrate")
    assert "50% of tokens kept" in out and "asked for: 1 - cosine of at most 0.1000" in out
    # On a busy machine no time may be won.
    assert "10 texts that were not searched on" in out or "nothing gains" in out


@pytest.fixture
def minilm() -> None:
    """Skips where the network of the text examples is not installed."""
    import nlp

    if "all-minilm-l6-v2" not in nlp.list_pretrained():
        pytest.skip("all-minilm-l6-v2 is not installed")
