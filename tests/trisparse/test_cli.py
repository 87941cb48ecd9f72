"""The other commands, and what all of them share."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from pointcloud import pretrained
from trisparse import __version__, cli, terminal, zoo

Run = Callable[..., Any]


def test_version_and_help(trisparse: Run) -> None:
    assert trisparse("--version").stdout == f"trisparse {__version__}\n"
    listed = trisparse("--help").stdout
    for command in ("segment", "classify-video", "embed", "classify-text", "convert", "models", "demo", "doctor"):
        assert command in listed
        assert trisparse(command, "--help").exit_code == 0
    assert trisparse("classify").exit_code == 2


def test_commands_do_not_import_the_command_line() -> None:
    folder = Path(cli.__file__).parent / "commands"
    files = sorted(folder.glob("*.py"))
    assert len(files) == 11
    for path in files:
        assert "trisparse.cli" not in path.read_text() and "import cli" not in path.read_text(), path


def test_waiting_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delitem(sys.modules, "torch")
    cli.sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    cli.sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.undo()
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cli.sleep_while_waiting()  # too late: torch is loaded
    assert "OMP_WAIT_POLICY" not in os.environ


def test_models(trisparse: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = trisparse("models")
    listed = result.stdout
    assert result.exit_code == 0 and "accuracy past 1.000, both 1.000, no-shift 0.209" in listed
    assert "minkunet14-streets  (" in listed and "tsm-motion-digits  (" in listed and "anticlockwise" in listed
    monkeypatch.setattr(zoo, "DOMAINS", ("pointcloud",))
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    assert trisparse("models").stdout == "no pretrained networks are installed\n"
    shutil.copy(model, tmp_path / "tiny.safetensors")
    listed = trisparse("models").stdout
    for words in ("tiny  (0.", "A network of random numbers.", "ground, wall, thing", "0.4 m", "0.250", "depth=14"):
        assert words in listed
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    result = trisparse("models")
    assert result.exit_code == 2 and "torn.safetensors is not a safetensors file" in result.stderr


def test_tables() -> None:
    assert terminal.table([("a", "1"), ("bcd", "1,000")], ("name", "n")) == (
        "  name      n\n  ----  -----\n  a         1\n  bcd   1,000"
    )
    assert terminal.table([], ("name", "n")) == "  name  n\n  ----  -"
    assert (terminal.seconds(1.234), terminal.seconds(0.0123)) == ("1.23 s", "12.3 ms")
    assert (terminal.one_line(ValueError("a\n  b")), terminal.one_line(KeyboardInterrupt())) == (
        "a b",
        "KeyboardInterrupt",
    )
