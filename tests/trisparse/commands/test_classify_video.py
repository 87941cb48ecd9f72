"""`trisparse classify-video`: answers, resume, policies, pictures, and what it says of what it cannot use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("av")


from trisparse.commands.classify_video import VideoOptions
from trisparse.videos import classify as classifying
from trisparse.videos import run as videos
from trisparse.videos.sources import Source, plan
from video.classify import Classifier
from video.models import TSM, MobileNetV2
from video.pretrained import ModelCard, load_pretrained, save_pretrained
from video.reader import VideoReader

from ..conftest import write_clip

Run = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]
NAMES = tuple(f"thing {i}" for i in range(7))


def save_tiny(path: Path, direction: str = "past") -> Path:
    """A TSM of random numbers on frames of 32 pixels, four to a clip."""
    torch.manual_seed(0)
    arguments = {
        "backbone": "mobilenet_v2",
        "num_classes": len(NAMES),
        "num_segments": 4,
        "direction": direction,
        "backbone_arguments": {"width": 0.25},
    }
    model = TSM(**arguments)
    model.new_fc.weight.data.normal_(std=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(torch.randn(4 * 4, 3, 32, 32))  # batch norms that know their input: values keep their size
    card = ModelCard(
        description="Random numbers.",
        architecture="TSM",
        arguments=arguments,
        class_names=NAMES,
        size=32,
        num_segments=4,
    )
    save_pretrained(model, path, card)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of three clips and a file that is none."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, frames in (("a.mp4", 12), ("b.mp4", 20), ("c.mp4", 5)):
        write_clip(folder / name, frames)
    (folder / "notes.txt").write_text("not a video")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fails(result: Any, *words: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("trisparse: error: "), result.stderr
    for word in words:
        assert word in result.stderr


def test_whole_videos(trisparse: Run, tiny: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = trisparse("classify-video", clips, "--model", tiny, "--dtype", "fp32", "-o", out, "--top", 3)
    assert result.exit_code == 0, result.stderr
    found = lines(out)
    assert [Path(line["video"]).name for line in found] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [line["frames"] for line in found] == [12, 20, 5]
    assert found[0]["looked_at"] == [1, 4, 7, 10]
    model = load_pretrained(tiny)
    classifier = Classifier(model)
    with VideoReader(clips / "b.mp4") as reader:
        x = classifier.preprocess(reader.get_batch(found[1]["looked_at"]))
    expected = model(x).softmax(1)[0].topk(3)
    assert [score["label"] for score in found[1]["best"]] == [NAMES[i] for i in expected.indices.tolist()]
    given = torch.tensor([score["probability"] for score in found[1]["best"]])
    torch.testing.assert_close(given, expected.values, atol=1e-4, rtol=0)
    assert "b.mp4: 4 of 20 frames" in result.stdout and f"wrote {out}" in result.stdout


def test_live_is_the_network_frame_by_frame(trisparse: Run, tiny: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = trisparse("classify-video", clips / "b.mp4", "--live", "--model", tiny, "--dtype", "fp32", "-o", out)
    assert result.exit_code == 0, result.stderr
    found = lines(out)
    assert [line["frame"] for line in found] == list(range(20))
    assert {line["action"] for line in found} == {"compute"}
    # The published definition: a clip of the past, as long as the video.
    model = load_pretrained(tiny)
    model.num_segments = 20
    with VideoReader(clips / "b.mp4") as reader:
        logits = model.frame_logits(Classifier(model).preprocess(reader[:])[0])
    assert [line["best"][0]["label"] for line in found] == [NAMES[i] for i in logits.argmax(1).tolist()]
    assert "20 frames, 20 computed" in result.stdout


@pytest.mark.parametrize("policy", ["every:3", "keyframes", "packets:400", "luma:0.5", "luma", "motion:2"])
def test_policies_skip(trisparse: Run, tiny: Path, tmp_path: Path, policy: str) -> None:
    clip = write_clip(tmp_path / "still.mp4", 24, still_from=6)
    out, picture = tmp_path / "out.jsonl", tmp_path / "out.png"
    result = trisparse(
        "classify-video", clip, "--policy", policy, "--model", tiny, "-o", out, "--picture", picture
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    actions = [line["action"] for line in lines(out)]
    assert len(actions) == 24 and actions[0] == "compute" and "reuse" in actions
    assert picture.stat().st_size > 10_000


def test_an_early_exit_answers_the_whole_video(trisparse: Run, tiny: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = trisparse("classify-video", clips / "b.mp4", "--policy", "exit:0.01", "--model", tiny, "-o", out)
    assert result.exit_code == 0, result.stderr
    (line,) = lines(out)
    assert line["frames"] == 20 and len(line["looked_at"]) == 1 and len(line["best"]) == 5


def test_recomputing_changes_gives_the_same_answers(trisparse: Run, tiny: Path, clips: Path, tmp_path: Path) -> None:
    answers = {}
    for name, options in {"dense": ["--live"], "delta": ["--delta", "0"]}.items():
        out = tmp_path / f"{name}.jsonl"
        result = trisparse(
            "classify-video", clips / "b.mp4", *options, "--model", tiny, "--dtype", "fp32", "-o", out
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        answers[name] = [line["best"][0]["label"] for line in lines(out)]
    assert answers["dense"] == answers["delta"]


def test_one_bad_file_of_several(trisparse: Run, tiny: Path, clips: Path, tmp_path: Path) -> None:
    (clips / "b.mp4").write_bytes(b"nothing of a video")
    out = tmp_path / "out.jsonl"
    result = trisparse("classify-video", clips, "--model", tiny, "-o", out)
    fails(result, "b.mp4", "1 of 3 videos failed", code=1)
    found = lines(out)
    assert len(found) == 3 and "b.mp4" in found[1]["error"] and found[2]["best"]


def test_a_stopped_run_goes_on(tiny: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = plan([str(clips)])
    out = tmp_path / "out.jsonl"
    options = VideoOptions(model=str(tiny), dtype="fp32", live=True, output=out)
    seen: list[str] = []
    classify = videos.classify

    def stopping(source: Source, *rest: Any) -> Any:
        seen.append(source.name)
        for i, progress in enumerate(run := classify(source, *rest)):
            if len(seen) == 2 and i == 7:
                run.close()
                raise KeyboardInterrupt
            yield progress
        return classifying.Summary(source, ["done"])

    monkeypatch.setattr(videos, "classify", stopping)
    with pytest.raises(KeyboardInterrupt):
        videos.run(sources, options)
    assert not out.exists()
    assert videos.run(sources, options) == 0
    assert seen == ["a.mp4", "b.mp4", "b.mp4", "c.mp4"]
    assert [(Path(line["video"]).name, line["frame"]) for line in lines(out)] == [
        (name, i) for name, n in (("a.mp4", 12), ("b.mp4", 20), ("c.mp4", 5)) for i in range(n)
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_a_camera(tiny: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.ts", 15)
    pipe, out = tmp_path / "pipe", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "trisparse", "classify-video", pipe, "--model", tiny, "-o", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        with pipe.open("wb") as sink:
            sink.write(clip.read_bytes())
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert [line["frame"] for line in lines(out)] == list(range(15))


def test_an_offline_network_is_not_run_live(trisparse: Run, clips: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "both.safetensors", "both")
    fails(trisparse("classify-video", clips / "a.mp4", "--live", "--model", model), "cannot read the frame to come")
    fails(trisparse("classify-video", clips / "a.mp4", "--delta", "0.1", "--model", model), "frame by frame")
    assert trisparse("classify-video", clips / "a.mp4", "--model", model).exit_code == 0


def test_output_that_exists(trisparse: Run, tiny: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    fails(trisparse("classify-video", clips / "c.mp4", "--model", tiny, "-o", out), "--overwrite")
    assert out.read_text() == "precious\n"
    assert trisparse("classify-video", clips / "c.mp4", "--model", tiny, "-o", out, "--overwrite").exit_code == 0
    assert len(lines(out)) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.mp4"], "no such video"),
        (["empty"], "no videos in this folder"),
        (["a.mp4", "a.mp4"], "named twice"),
        (["a.mp4", "--policy", "lumma"], "did you mean 'luma'"),
        (["a.mp4", "--policy", "every"], "must be written every:N"),
        (["a.mp4", "--policy", "every:0"], "n must be at least 1"),
        (["a.mp4", "--policy", "luma:nan"], "a finite number was expected after the colon, got 'nan'"),
        (["a.mp4", "--policy", "luma:x"], "--policy luma:x: a finite number was expected after the colon, got 'x'"),
        (
            ["a.mp4", "--policy", "every:1.5"],
            "--policy every:1.5: a whole number was expected after the colon, got '1.5'",
        ),
        (["a.mp4", "--live", "--delta", "inf"], "must be a finite number of at least 0, got inf"),
        (["a.mp4", "--policy", "keyframes:3"], "takes no argument"),
        (["a.mp4", "--policy", "gate:none.safetensors"], "none.safetensors"),
        (["a.mp4", "--policy", "exit", "--live"], "leave one of them out"),
        (["a.mp4", "--scene-cut", "3"], "add --policy"),
        (["a.mp4", "--live", "--crops", "3"], "whole videos"),
        (["a.mp4", "--clips", "random"], "--clips must be"),
        (["a.mp4", "--crops", "4"], "--crops must be one of"),
        (["a.mp4", "--dtype", "fp8"], "--dtype must be one of auto, fp32, bf16, got 'fp8'"),
        (["a.mp4", "-o", "no/out.jsonl"], "does not exist"),
        (["a.mp4", "-o", "a.mp4"], "overwrite the video"),
        (["a.mp4", "-o", "."], "a directory"),
        (["a.mp4", "--picture", "t.png"], "add --live"),
        (["a.mp4", "--live", "--picture", "t.foo"], "suffix of .png"),
        (["a.mp4", "--live", "--picture", "a.mp4"], "suffix of .png"),
        (["a.mp4", "--live", "--picture", "a.png", "--timeline", "b.png"], "the former name of --picture"),
        (["a.mp4", "--overwrite"], "--overwrite replaces a file: add --output"),
        (["a.mp4", "--model", "tsm-motion-digit"], "did you mean"),
    ],
)
def test_wrong_use_is_named(
    trisparse: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    write_clip(tmp_path / "a.mp4", 6)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in arguments else ["--model", tiny]
    fails(trisparse("classify-video", *arguments, *model), words)


def test_single_frame_networks_of_other_projects(trisparse: Run, clips: Path, tmp_path: Path) -> None:
    model = MobileNetV2(num_classes=5, width=0.25).eval()
    torch.save(model.state_dict(), tmp_path / "mobilenet_v2.pth")
    result = trisparse("classify-video", clips / "a.mp4", "--model", tmp_path / "mobilenet_v2.pth")
    assert result.exit_code == 0 and "8 of 12 frames" in result.stdout, result.stderr


def test_a_network_of_points_is_none_for_video(trisparse: Run, clips: Path) -> None:
    fails(
        trisparse("classify-video", clips / "a.mp4", "--model", "minkunet14-streets"), "--model must be", "minkunet14"
    )


def test_clips_are_run_one_by_one(tiny: Path, clips: Path) -> None:
    classifier = Classifier(load_pretrained(tiny))
    frames: list[int] = []
    classifier.model.register_forward_pre_hook(lambda _, args: frames.append(args[0].numel() // (3 * 32 * 32)))
    with VideoReader(clips / "b.mp4") as reader:
        together = classifier.video(reader, "dense", crops=3)
    assert frames == [4] * 30
    assert sum(score.probability for score in together.best) <= 1.0001


def test_a_picture_that_fails_loses_no_answers(
    trisparse: Run, tiny: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(videos, "draw_timeline", full)
    out = tmp_path / "out.jsonl"
    result = trisparse("classify-video", clips, "--live", "--model", tiny, "-o", out, "--picture", tmp_path / "t")
    fails(result, "No space left", "3 of 3 videos failed", code=1)
    assert len(lines(out)) == 12 + 20 + 5 and "best" in lines(out)[0]


class Endless:
    """A camera that is interrupted after some frames."""

    def __init__(self, reader: VideoReader) -> None:
        self.reader = reader

    def __iter__(self) -> Any:
        for frame in self.reader.frames():
            if frame.index == 7:
                raise KeyboardInterrupt
            yield frame


def test_a_camera_interrupted_at_once_keeps_its_answers(
    tiny: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(classifying, "open_live", lambda _: nullcontext(Endless(VideoReader(clips / "a.mp4"))))
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        videos.run(plan(["-"]), VideoOptions(model=str(tiny), dtype="fp32", live=True, output=out))
    assert [line["frame"] for line in lines(out)] == list(range(7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "out.jsonl"]
    assert "the same command" not in capsys.readouterr().err.lower()


def test_an_interrupted_overwrite_says_how_to_go_on(
    tiny: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt
        yield

    classify = videos.classify
    sources = plan([str(clips)])
    options = VideoOptions(model=str(tiny), dtype="fp32", output=tmp_path / "o")
    monkeypatch.setattr(videos, "classify", lambda *_: interrupted())
    with pytest.raises(KeyboardInterrupt):
        videos.run(sources, options)
    assert "Stopped before anything was done." in capsys.readouterr().err
    monkeypatch.setattr(
        videos, "classify", lambda source, *rest: (interrupted if source.name == "b.mp4" else classify)(source, *rest)
    )
    for overwrite, words in ((False, "again"), (True, "without --overwrite")):
        with pytest.raises(KeyboardInterrupt):
            videos.run(sources, replace(options, overwrite=overwrite))
        expected = f"Stopped. Run the same command {words} to continue (1 of 3 videos are done)."
        assert expected in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_answers_of_a_camera_that_was_cut_off_stay(trisparse: Run, tiny: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text('{"frame": 0}\n')
    (tmp_path / "out.jsonl.progress").write_text("{}\n")
    result = trisparse("classify-video", tmp_path / "pipe", "--model", tiny, "-o", tmp_path / "out.jsonl")
    fails(result, "out.jsonl.partial holds the answers", "--overwrite")
    assert partial.read_text() == '{"frame": 0}\n'


def test_a_camera_that_is_told_to_end_writes_its_answers(tiny: Path, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip.ts", 15), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "trisparse", "classify-video", "-", "--model", str(tiny), "-o", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, text=False) as process:
        assert process.stdin is not None
        for _ in range(600):
            if process.poll() is not None:
                break
            process.stdin.write(clip.read_bytes())
            process.stdin.flush()
            partial = tmp_path / "out.jsonl.partial"
            if partial.exists() and partial.stat().st_size:
                process.terminate()
                break
            time.sleep(0.05)
        process.stdin.close()
        assert process.wait(60) == 0
    assert lines(out)[0]["frame"] == 0


def test_labels_name_the_classes(trisparse: Run, tiny: Path, clips: Path, tmp_path: Path) -> None:
    labels, out = tmp_path / "labels.txt", tmp_path / "out.jsonl"
    labels.write_text("\n".join(f"name {i}" for i in range(len(NAMES))))
    result = trisparse("classify-video", clips / "a.mp4", "--model", tiny, "--labels", labels, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert lines(out)[0]["best"][0]["label"].startswith("name ")
    labels.write_text("one\ntwo\n")
    result = trisparse("classify-video", clips / "a.mp4", "--model", tiny, "--labels", labels)
    fails(result, "labels.txt", "each of 7 classes expected, got 2")


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_model(
    trisparse: Run, tiny: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(classifying, "imagenet_weights", lambda: tiny if installed else None)
    result = trisparse("classify-video", clips / "a.mp4")
    assert result.exit_code == 0, result.stderr
    assert "no --model given" in result.stderr and ("clockwise" in result.stdout) == (not installed)


def test_pictures_are_not_overwritten_unasked(trisparse: Run, tiny: Path, clips: Path, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    picture.write_text("precious")
    # By its former name too.
    for option in ("--picture", "--timeline"):
        command = ["classify-video", clips / "c.mp4", "--live", "--model", tiny, option, picture]
        fails(trisparse(*command), "out.png exists; --overwrite replaces it")
        assert picture.read_text() == "precious"
    assert trisparse(*command, "--overwrite").exit_code == 0
    assert picture.stat().st_size > 10_000
    assert "--timeline" not in trisparse("classify-video", "--help").stdout


def test_a_run_that_is_told_to_end_continues(tiny: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "out.jsonl"
    folder.mkdir()
    write_clip(folder / "00.mp4", 200)
    for i in range(1, 30):
        (folder / f"{i:02}.mp4").write_bytes((folder / "00.mp4").read_bytes())
    command = ["classify-video", str(folder), "--live", "--model", str(tiny), "-o", str(out)]
    program = [sys.executable, "-m", "trisparse", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    progress = tmp_path / "out.jsonl.progress"
    with subprocess.Popen(program, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if progress.exists() and progress.read_text().count("\n") > 1:
                process.terminate()
                break
            time.sleep(0.02)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped. Run the same command again to continue" in errors, errors
    assert not out.exists()


def test_stopped_while_a_video_is_marked_as_done(
    tiny: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish = videos.Journal.finish

    def signalled(journal: Any, item: str) -> None:
        signal.raise_signal(signal.SIGINT)
        finish(journal, item)

    monkeypatch.setattr(videos.Journal, "finish", signalled)
    with pytest.raises(KeyboardInterrupt):
        videos.run(plan([str(clips)]), VideoOptions(model=str(tiny), dtype="fp32", output=tmp_path / "o"))
    assert "Run the same command again to continue (1 of 3 videos are done)." in capsys.readouterr().err
