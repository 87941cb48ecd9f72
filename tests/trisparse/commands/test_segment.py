"""`trisparse segment`: what it prints and writes, and what it says of files that it cannot use."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")

import pointcloud
import pointcloud.simulate
from pointcloud.io import SUFFIXES as READABLE
from pointcloud.segment import Segmenter
from trisparse import clouds, load_pretrained
from trisparse.clouds import SUFFIXES

from ..conftest import street

Run = Callable[..., Any]


def fails(result: Any, *words: str, code: int = 2) -> None:
    """One line on stderr that holds the words; no traceback, nothing on stdout."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("compiling")]
    assert len(lines) == 1 and lines[0].startswith("trisparse: error: "), result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in lines[0], lines[0]


def test_labels_are_those_of_the_network(trisparse: Run, model: Path, cloud: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ply"
    result = trisparse("segment", cloud, "-o", out, "--model", model, "--dtype", "fp32")
    assert result.exit_code == 0, result.stderr
    written = pointcloud.read_points(out)
    read = pointcloud.read_points(cloud)
    assert torch.equal(written.xyz, read.xyz) and torch.equal(written.intensity, read.intensity)
    expected = Segmenter(pointcloud.accelerate(load_pretrained(model)))(read)
    assert torch.equal(written.labels, expected.labels)
    assert int((written.labels == -1).sum()) == 20
    assert len(written.labels.unique()) > 2
    # One colour per label.
    pairs = {(int(label), *color) for label, color in zip(written.labels, written.rgb.tolist())}
    assert len(pairs) == len({label for label, *_ in pairs}) == len({tuple(color) for _, *color in pairs})

    assert "820 points" in result.stdout and f"{expected.voxels:,} voxels of 0.4 m; fp32" in result.stdout
    for stage in ("read", "voxels", "network", "labels", "write", "total"):
        assert stage in result.stdout
    for name, count in expected.counts().items():
        assert any(line.split()[:2] == [name, str(count)] for line in result.stdout.splitlines())
    assert f"wrote {out}" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ply", "street.bin"]


def test_picture(trisparse: Run, model: Path, cloud: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    image = pytest.importorskip("PIL.Image")
    result = trisparse("segment", cloud, "--picture", tmp_path / "out.png", "--model", model)
    assert result.exit_code == 0, result.stderr
    with image.open(tmp_path / "out.png") as picture:
        assert picture.size == (1600, 1000)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "auto"])
def test_dtypes(trisparse: Run, model: Path, cloud: Path, dtype: str) -> None:
    result = trisparse("segment", cloud, "--model", model, "--dtype", dtype)
    assert result.exit_code == 0, result.stderr
    assert dtype == "auto" or f"; {dtype}," in result.stdout


def test_threads(trisparse: Run, model: Path, cloud: Path) -> None:
    before = torch.get_num_threads()
    try:
        result = trisparse("segment", cloud, "--model", model, "--threads", 1)
        assert result.exit_code == 0 and ", 1 thread\n" in result.stdout and torch.get_num_threads() == 1
        assert trisparse("segment", cloud, "--model", model, "--threads", 0).exit_code == 2
    finally:
        torch.set_num_threads(before)


def test_columns_and_format(trisparse: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.dat"
    street()[:, [2, 0, 1]].tofile(path)
    fails(trisparse("segment", path, "--model", model), "unknown suffix '.dat'", code=1)
    result = trisparse("segment", path, "--model", model, "--format", "bin", "--columns", "z x y")
    assert result.exit_code == 0, result.stderr
    assert "820 points" in result.stdout
    assert any(line.split()[:2] == ["unlabelled", "20"] for line in result.stdout.splitlines())
    fails(trisparse("segment", path, "--model", model, "--format", "bim"), "--format must be one of", "'bim'")
    fails(trisparse("segment", path, "--model", model, "--format", "bin", "--columns", "x y"), "--columns must name")


@pytest.mark.parametrize(("points", "text"), [(0, "0 points, 0 voxels"), (1, "1 points, 1 voxels")])
def test_hardly_any_points(trisparse: Run, model: Path, tmp_path: Path, points: int, text: str) -> None:
    pytest.importorskip("PIL")
    path, out = tmp_path / "cloud.ply", tmp_path / "out.ply"
    pointcloud.write_ply(path, pointcloud.PointCloud(torch.full((points, 3), 5.0)))
    result = trisparse("segment", path, "-o", out, "--picture", tmp_path / "out.png", "--model", model)
    assert result.exit_code == 0, result.stderr
    assert text in result.stdout
    assert len(pointcloud.read_points(out)) == points


def test_points_that_are_not_finite(trisparse: Run, model: Path, tmp_path: Path) -> None:
    rows = street()
    rows[5, 1] = np.nan
    path = tmp_path / "nan.bin"
    rows.tofile(path)
    fails(trisparse("segment", path, "--model", model, "-o", tmp_path / "out.ply"), "nan.bin: 1 of 820 points", code=1)
    assert not (tmp_path / "out.ply").exists()
    result = trisparse("segment", path, "--model", model, "--invalid", "drop")
    assert result.exit_code == 0 and "819 points" in result.stdout
    fails(
        trisparse("segment", path, "--model", model, "--invalid", "maybe"),
        "--invalid must be one of error, drop",
        "'maybe'",
    )


def test_files_that_are_no_clouds(trisparse: Run, model: Path, tmp_path: Path) -> None:
    fails(trisparse("segment", tmp_path / "absent.bin", "--model", model), "absent.bin: no such file")
    (tmp_path / "picture.pcd").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    fails(trisparse("segment", tmp_path / "picture.pcd", "--model", model), "picture.pcd", code=1)
    (tmp_path / "torn.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 9\n")
    fails(trisparse("segment", tmp_path / "torn.ply", "--model", model), "torn.ply", code=1)
    (tmp_path / "none").mkdir()
    fails(trisparse("segment", tmp_path / "none", "--model", model), "no clouds in this folder")


def test_places_that_cannot_be_written(trisparse: Run, model: Path, cloud: Path, tmp_path: Path) -> None:
    fails(trisparse("segment", cloud, "-o", tmp_path / "no" / "out.ply", "--model", model), "does not exist")
    fails(trisparse("segment", cloud, "-o", tmp_path, "--model", model), "a directory")
    before = cloud.read_bytes()
    fails(trisparse("segment", cloud, "-o", cloud, "--model", model), "would overwrite")
    assert cloud.read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(trisparse: Run, model: Path, cloud: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    fails(trisparse("segment", cloud, "-o", folder / "out.ply", "--model", model), "not writable")


def test_bad_models_and_dtypes(trisparse: Run, model: Path, cloud: Path, tmp_path: Path) -> None:
    fails(trisparse("segment", cloud, "--model", "minkunet-99"), "name_or_path must be", "'minkunet-99'")
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    fails(trisparse("segment", cloud, "--model", tmp_path / "w.safetensors"), "is not a safetensors file")
    fails(
        trisparse("segment", cloud, "--model", model, "--dtype", "fp8"),
        "--dtype must be one of auto, fp32, bf16, got 'fp8'",
    )


def test_debug_shows_where(trisparse: Run, model: Path, tmp_path: Path) -> None:
    result = trisparse("segment", tmp_path / "absent.bin", "--model", model, "--debug")
    assert result.exit_code == 2 and "Traceback" in result.stderr and "FileNotFoundError" in result.stderr
    (tmp_path / "bad.bin").write_bytes(b"seven b")
    result = trisparse("segment", tmp_path / "bad.bin", "--model", model, "--debug")
    assert result.exit_code == 1 and "Traceback" in result.stderr and "ValueError" in result.stderr


def test_a_folder(trisparse: Run, model: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        street(seed=i).tofile(folder / f"{i}.bin")
    (folder / "notes.md").write_text("not a cloud, and by its suffix none")
    result = trisparse("segment", folder, "-o", out, "--model", model)
    assert result.exit_code == 0, result.stderr
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["1/3 0.bin", "2/3 1.bin", "3/3 2.bin"]
    assert sorted(path.name for path in out.iterdir()) == ["0.bin.ply", "1.bin.ply", "2.bin.ply"]
    assert len(pointcloud.read_points(out / "2.bin.ply")) == 820


def test_one_failure_of_several_loses_nothing(trisparse: Run, model: Path, cloud: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(b"seven b")
    street(seed=1).tofile(tmp_path / "other.bin")
    out = tmp_path / "out"
    result = trisparse("segment", cloud, tmp_path / "bad.bin", tmp_path / "other.bin", "-o", out, "--model", model)
    assert result.exit_code == 1
    assert "bad.bin" in result.stderr and "1 of 3 clouds failed" in result.stderr and "Traceback" not in result.stderr
    kept = ["trisparse-segment.partial", "trisparse-segment.progress"]
    assert names(out) == ["other.bin.ply", "street.bin.ply", *kept]


def test_batches_never_overwrite(trisparse: Run, model: Path, cloud: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    street().tofile(other / "street.bin")
    fails(trisparse("segment", cloud, other, "-o", tmp_path / "out", "--model", model), "would both be written as")
    fails(trisparse("segment", other, "-o", other, "--model", model), "--output must be another folder")
    fails(trisparse("segment", other, "-o", cloud, "--model", model), "--output must be a folder")


def test_suffixes_are_those_that_are_read() -> None:
    assert set(SUFFIXES) == {suffix for suffix in READABLE if suffix.count(".") == 1}


def three(folder: Path) -> Path:
    folder.mkdir()
    for i in range(3):
        street(seed=i).tofile(folder / f"{i}.bin")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stopped_at(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Labelling the cloud of that name is interrupted, once; the names of those that are labelled."""
    label, seen = clouds.label, []

    def once(*arguments: Any) -> Any:
        job = next(argument for argument in arguments if isinstance(argument, clouds.Job))
        seen.append(job.source.name)
        if job.source.name == name and seen.count(name) == 1:
            raise KeyboardInterrupt
        return label(*arguments)

    monkeypatch.setattr(clouds, "label", once)
    return seen


def test_outputs_that_exist(trisparse: Run, model: Path, cloud: Path, tmp_path: Path) -> None:
    for option, name in (("--output", "out.ply"), ("--picture", "out.png")):
        out = tmp_path / name
        out.write_text("precious")
        command = ["segment", cloud, option, out, "--model", model]
        fails(trisparse(*command), f"{name} exists; --overwrite replaces it")
        assert out.read_text() == "precious"
        assert trisparse(*command, "--overwrite").exit_code == 0
        assert out.read_bytes() != b"precious"
    fails(trisparse("segment", cloud, "--model", model, "--overwrite"), "add --output")
    out = tmp_path / "out"
    out.mkdir()
    (out / "2.bin.ply").write_text("precious")
    command = ["segment", three(tmp_path / "in"), "-o", out, "--model", model]
    fails(trisparse(*command), "2.bin.ply exists")
    assert names(out) == ["2.bin.ply"] and (out / "2.bin.ply").read_text() == "precious"
    assert trisparse(*command, "--overwrite").exit_code == 0
    assert names(out) == ["0.bin.ply", "1.bin.ply", "2.bin.ply"] and (out / "2.bin.ply").stat().st_size > 1000


def test_a_stopped_run_continues(trisparse: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    command = ["segment", three(tmp_path / "in"), "-o", out, "--model", model]
    seen = stopped_at(monkeypatch, "1.bin")
    result = trisparse(*command)
    assert result.exit_code == 130, result.output
    assert "Stopped. Run the same command again to continue (1 of 3 clouds are done)." in result.stderr
    assert names(out) == ["0.bin.ply", "trisparse-segment.partial", "trisparse-segment.progress"]
    fails(trisparse(*command, "--dtype", "fp32"), "other settings (dtype 'auto', now 'fp32')", "--overwrite")
    result = trisparse(*command)
    assert result.exit_code == 0 and "1 of 3 clouds were done before" in result.stdout, result.output
    assert seen == ["0.bin", "1.bin", "1.bin", "2.bin"]
    assert names(out) == ["0.bin.ply", "1.bin.ply", "2.bin.ply"]
    fails(trisparse(*command), "0.bin.ply exists; --overwrite replaces it")


def test_a_result_that_was_removed_is_made_again(
    trisparse: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["segment", three(tmp_path / "in"), "-o", out, "--model", model]
    stopped_at(monkeypatch, "2.bin")
    assert trisparse(*command).exit_code == 130
    (out / "0.bin.ply").unlink()
    assert trisparse(*command).exit_code == 0
    assert names(out) == ["0.bin.ply", "1.bin.ply", "2.bin.ply"]


def test_stopped_before_anything_was_done(
    trisparse: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stopped_at(monkeypatch, "0.bin")
    result = trisparse("segment", three(tmp_path / "in"), "-o", out, "--model", model)
    assert result.exit_code == 130 and "Stopped before anything was done." in result.stderr
    assert names(out) == []


def test_a_failed_cloud_that_was_put_right_is_done_alone(
    trisparse: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = three(tmp_path / "in"), tmp_path / "out"
    (folder / "1.bin").write_bytes(b"seven b")
    command = ["segment", folder, "-o", out, "--model", model]
    seen = stopped_at(monkeypatch, "none")
    result = trisparse(*command)
    assert result.exit_code == 1 and "1 of 3 clouds failed. The others are done" in result.stderr, result.output
    street(seed=1).tofile(folder / "1.bin")
    assert trisparse(*command).exit_code == 0
    assert seen == ["0.bin", "2.bin", "1.bin"]
    assert names(out) == ["0.bin.ply", "1.bin.ply", "2.bin.ply"]


def test_an_interrupted_picture_leaves_nothing(
    trisparse: Run, model: Path, cloud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(*_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(clouds, "draw_labels", half)
    result = trisparse("segment", cloud, "--picture", tmp_path / "out.png", "--model", model)
    assert result.exit_code == 130 and names(tmp_path) == ["street.bin"]


@pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")
def test_told_to_end(trisparse: Run, model: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(40):
        street(seed=i).tofile(folder / f"{i:02}.bin")
    command = ["segment", folder, "-o", out, "--model", model]
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    program = [sys.executable, "-m", "trisparse", *command, "--threads", "1"]
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, cwd=root, env=environment, **options) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("*.ply")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    done = int(re.search(r"continue \((\d+) of 40 clouds are done\)", errors)[1])  # type: ignore[index]
    written = [path.stat().st_size for path in out.glob("*.ply")]
    assert 1 <= done <= len(written) <= done + 1 and len(set(written)) == 1
    assert not [name for name in names(out) if name.startswith(".")]
    again = trisparse(*command)
    assert again.exit_code == 0 and f"{done} of 40 clouds were done before" in again.stdout, again.output
    assert len(list(out.iterdir())) == 40


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("too far apart"), 1, "1 of 3 clouds failed. The others are done"),
        (OSError(28, "No space left on device"), 2, "Run the same command again to continue (1 of 3 clouds are done)."),
    ],
    ids=["labelling", "writing"],
)
def test_what_goes_wrong_after_reading(
    trisparse: Run,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    words: str,
) -> None:
    label, out = clouds.label, tmp_path / "out"

    def wrong(*arguments: Any) -> Any:
        if arguments[3].source.name == "1.bin":
            raise error
        return label(*arguments)

    command = ["segment", three(tmp_path / "in"), "-o", out, "--model", model]
    with monkeypatch.context() as patch:
        patch.setattr(clouds, "label", wrong)
        result = trisparse(*command)
    assert result.exit_code == code and words in result.stderr, result.output
    assert trisparse(*command).exit_code == 0
    assert names(out) == ["0.bin.ply", "1.bin.ply", "2.bin.ply"]


def test_a_cloud_unlike_a_sweep_is_labelled_with_a_warning(
    trisparse: Run, model: Path, cloud: Path, tmp_path: Path
) -> None:
    room = tmp_path / "room.ply"
    pointcloud.write_ply(room, pointcloud.PointCloud(torch.rand(5000, 3) * 6))
    out = tmp_path / "out"
    result = trisparse("segment", room, cloud, "-o", out, "--model", model)
    assert result.exit_code == 0 and len(list(out.glob("*.ply"))) == 2
    warnings = [line for line in result.stderr.splitlines() if line.startswith("trisparse: warning: ")]
    assert len(warnings) == 2 and "room.ply: labelled, but not like a sweep" in warnings[0]
    assert "wide, as a room" in warnings[0] and "no intensity" in warnings[0]
    assert "street.bin" in warnings[1] and "it has 800 points" in warnings[1]


def test_a_sweep_is_labelled_without_a_word(trisparse: Run, model: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.ply"
    pointcloud.write_ply(sweep, pointcloud.simulate.simulate_sweep(1, "hdl32").to_cloud())
    result = trisparse("segment", sweep, "--model", model)
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if not line.startswith("compiling")] == []


def test_nothing_is_loaded_that_a_cloud_does_not_need(cloud: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom trisparse.cli import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'matplotlib', 'pandas', 'laspy', 'rich', 'onnx', 'transformers', 'video', 'nlp'}\n"
        "print(sorted(heavy & {*sys.modules}))"
    )
    arguments = ["segment", cloud, "-o", tmp_path / "a.ply", "--picture", tmp_path / "a.png"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_format() -> None:
    from pointcloud.io import FORMATS
    from trisparse.commands.segment import KNOWN_FORMATS

    assert KNOWN_FORMATS.split() == list(FORMATS)


def test_values_and_byte_order(trisparse: Run, model: Path, tmp_path: Path) -> None:
    rows = np.column_stack([street_rows(), np.zeros(len(street_rows()))]).astype(">f2")
    (tmp_path / "a.bin").write_bytes(rows.tobytes())
    given = ("segment", tmp_path / "a.bin", "--model", model, "--format", "kitti")
    fails(trisparse(*given), "this is no cloud", "byte_order='big'", code=1)
    result = trisparse(*given, "--values", "float16", "--byte-order", "big", "--output", tmp_path / "a.ply")
    assert result.exit_code == 0, result.output
    assert np.array_equal(pointcloud.read_points(tmp_path / "a.ply").xyz.numpy(), rows[:, :3].astype(np.float32))
    fails(trisparse(*given, "--values", "half"), "--values must be one of", "'half'")
    fails(trisparse(*given, "--byte-order", "middle"), "--byte-order must be one of", "'middle'")


def street_rows() -> np.ndarray:
    return np.random.default_rng(0).normal((0, 0, -1), (20, 20, 0.5), (800, 3))
