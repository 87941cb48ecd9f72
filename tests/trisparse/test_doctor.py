"""`trisparse doctor`: every check is printed, what is broken is named, the exit code tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from common_kernels import onednn, selftest
from trisparse import __version__, doctor

Run = Callable[..., Any]


def test_doctor(trisparse: Run) -> None:
    result = trisparse("doctor")
    assert result.exit_code == 0, result.stdout
    for words in (__version__, torch.__version__, "gather_gemm bf16", "all well", "threads", "GPU"):
        assert words in result.stdout
    assert "FAILED" not in result.stdout
    devices = 2 if torch.cuda.is_available() else 1
    names = [name for checks in selftest.CHECKS.values() for name in checks]
    assert result.stdout.count(" ok  ") == devices * len(names)
    assert all(f"\n  {name} " in result.stdout for name in names)


@pytest.mark.parametrize(
    ("works", "said"),
    [
        ({"linear fp32": True, "linear bf16": False, "convolution fp32": True}, "linear fp32, convolution fp32\n"),
        ({"linear fp32": False}, "none on packed weights"),
    ],
)
def test_doctor_lists_what_onednn_offers(
    trisparse: Run, monkeypatch: pytest.MonkeyPatch, works: dict[str, bool], said: str
) -> None:
    monkeypatch.setattr(onednn, "availability", lambda: works)
    monkeypatch.setattr(selftest, "CHECKS", {})
    found = trisparse("doctor").stdout
    assert "  oneDNN " in found and said in found and "linear bf16" not in found


def test_doctor_finds_a_broken_kernel(trisparse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = selftest.gather_gemm
    monkeypatch.setattr(selftest, "gather_gemm", lambda x, found, weight: right(x, found, weight.flip(0)))
    monkeypatch.setattr(selftest, "compact", lambda mask: 1 / 0)
    result = trisparse("doctor")
    assert result.exit_code == 1
    failed = [line.split("cpu")[0].strip() for line in result.stdout.splitlines() if "FAILED" in line]
    assert failed == ["compact", "gather_gemm fp32", "gather_gemm bf16"]
    assert "ZeroDivisionError" in result.stdout and "all well" not in result.stdout


def test_doctor_finds_that_nothing_is_kept(trisparse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cache_folder", lambda: None)
    result = trisparse("doctor")
    assert result.exit_code == 1 and "NUMBA_CACHE_DIR" in result.stdout and "all well" not in result.stdout


def test_doctor_names_the_extra_that_is_missing(trisparse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from trisparse import machine

    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert machine.optional_packages() == dict.fromkeys(machine.OPTIONAL)
    monkeypatch.undo()
    monkeypatch.setattr(machine, "optional_packages", lambda: {"laspy": None})
    said = " ".join(trisparse("doctor").stdout.split())
    assert "laspy missing: pip install 'trisparse[pointcloud]'" in said
