"""`python -m benchmarks` and `make gpu-check` as they are called, on a small cloud."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__, gpu_check, results
from benchmarks.pointcloud import CASES, layers, network, resample, workloads
from tests.benchmarks.clouds import shell

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_thread: None) -> Path:
    """One small workload and few shapes; the CSV goes to a temporary folder, which is returned."""
    monkeypatch.setattr(workloads, "WORKLOADS", {"shell": shell})
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(layers, "CHANNELS", ((4, 32), (16, 16)))
    monkeypatch.setattr(resample, "CHANNELS", ((32, 32),))
    monkeypatch.setattr(network, "WIDTHS", (0.5,))
    return tmp_path


# The encoders of detectors and the frames of a sensor are measured on one workload only, and have tests of their own.
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("detectors", "stream")])
def test_every_competitor_agrees(case: str, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pointcloud", "--case", case, "--workload", "shell", "--rounds", "1", "--threads", "1"]
    assert __main__.main([*arguments, "--device", "cpu"]) == 0, capsys.readouterr().out
    (path,) = small.rglob("pointcloud.csv")
    rows = results.read(path)
    assert {row.status.split(":")[0] for row in rows} <= {"ok", "skipped"}
    ours = [row for row in rows if row.competitor == "trisparse"]
    assert ours and all(row.status == "ok" and row.wall_ms and row.commit and row.versions for row in ours)
    assert __main__.main(["pointcloud", "--markdown", "--device", "cpu"]) == 0
    assert "| shell |" in capsys.readouterr().out


def test_missing_data_skips_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRISPARSE_DATA", str(tmp_path))
    assert __main__.main(["pointcloud", "--workload", "nuscenes", "--quick", "--device", "cpu"]) == 0
    assert "nuscenes: skipped, no " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--case", "map"], ["--threads", "0"], ["--dtype", "int8"], ["--workload", "x"]])
def test_bad_arguments_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["pointcloud", *arguments])
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_gpu_check_without_a_gpu_claims_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "gpu-check: no GPU found here; nothing was checked and nothing is claimed.\n"


def test_gpu_check_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_check, "NEEDED", ("torch", "no_such_module"))
    monkeypatch.setattr(gpu_check, "_gpu_found", lambda without_torch: True)
    assert gpu_check.main() == 1
    assert "lacks no_such_module" in capsys.readouterr().err
