"""A file appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common_models.files import replace_atomically


def test_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    with replace_atomically(target) as partial:
        partial.write_text("new")
        assert not target.exists() and partial.suffix == ".png" and partial.parent == tmp_path
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.bin"
    target.write_text("old")
    with pytest.raises(error), replace_atomically(target) as partial:
        partial.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_atomically(tmp_path / "out.bin"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with replace_atomically(target) as first, replace_atomically(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # the one that ended last
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="a file to write was expected"), replace_atomically(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="its folder .* does not exist"), replace_atomically(tmp_path / "a/b"):
        pass


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_text("old")
    code = (
        "import sys, time; from common_models.files import replace_atomically\n"
        "with replace_atomically(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", code, os.fspath(target)], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    assert target.read_text() == "old"
