"""`python -m pointcloud.training` on a data set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pointcloud.pretrained import load_pretrained
from pointcloud.training.__main__ import checkpoint_of, main
from tests.pointcloud.training import dataset_folders as folders

SMALL = ["--steps", "2", "--width", "0.125", "--depth", "14", "--voxel-size", "0.4"]


def test_a_data_set_becomes_a_file_that_segment_reads(
    tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.write_semantickitti(tmp_path / "data")
    output = tmp_path / "w.safetensors"
    options = [
        "--data",
        "semantickitti",
        str(tmp_path / "data"),
        "--mix",
        "laser",
        "--precision",
        "bf16",
        "--recompute",
    ]
    assert main(["-o", str(output), *options, *SMALL, "--workers", "2"]) == 0
    assert '"road":' in capsys.readouterr().out and not checkpoint_of(output).exists()
    card = load_pretrained(output).card
    assert card.recipe["mix"] == "laser" and card.recipe["recompute"] and card.recipe["scans"] == 2
    scan = tmp_path / "data/sequences/08/velodyne/000000.bin"
    command = [sys.executable, "-m", "trisparse", "segment", str(scan), "--model", str(output)]
    command += ["-o", str(tmp_path / "out.ply")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout + done.stderr for name in card.class_names)


def test_sequences_and_what_stands_in_both_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.write_semantickitti(tmp_path / "data")
    command = ["-o", str(tmp_path / "w.safetensors"), "--data", "semantickitti", str(tmp_path / "data"), *SMALL]
    assert main([*command, "--train-sequences", "00,08"]) == 1
    assert "08/velodyne/000000.bin is in both splits" in capsys.readouterr().err
    assert main([*command, "--train-sequences", "77"]) == 1
    assert "expected the folder of a sequence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recompute"], "--recompute applies to a data set only"),
        (["--precision", "bf16"], "--precision applies to a data set only"),
        (["--data", "s3dis", "x", "--train-sweeps", "3"], "--train-sweeps applies to simulated sweeps only"),
        (["--data", "s3dis", "x", "--workers", "0"], "--workers must be at least 1, got 0"),
    ],
)
def test_options_without_a_meaning_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["-o", str(tmp_path / "w.safetensors"), *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_errors_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "w.safetensors")
    assert main(["-o", output, "--data", "semantickiti", str(tmp_path)]) == 1
    assert "name must be one of semantickitti" in capsys.readouterr().err
    folders.write_semantickitti(tmp_path / "data")
    path = tmp_path / "data/sequences/00/labels/000001.label"
    path.write_bytes(path.read_bytes()[:-4])
    assert main(["-o", output, "--data", "semantickitti", str(tmp_path / "data"), *SMALL]) == 1
    assert "000001.label: expected 1000 labels" in capsys.readouterr().err


def test_help_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "metres (default 0.15, 0.05 with --data)" in text
