"""The word on stderr while kernels are compiled, and its absence while they are not."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from numba import njit

from trisparse.progress import compiled_elsewhere, compiling

SAID = re.compile(r"compiling the kernels, once per machine: \.\.\.\ncompiling the kernels: done in \d+ s\n")


def test_a_word_while_compiling(capsys: pytest.CaptureFixture[str]) -> None:
    @njit
    def inner(x: float) -> float:
        return x + 1

    @njit
    def outer(x: float) -> float:
        return inner(x) * 2

    with compiling("the kernels", patience=0.0):
        assert outer(1.0) == 4
        assert outer(1) == 4
    said = capsys.readouterr()
    assert said.out == "" and SAID.fullmatch(said.err)
    with compiling("the kernels", patience=0.0):
        assert outer(2.0) == 6  # compiled before
    with compiling("the kernels", patience=500):
        assert inner(1 + 2j) == 2 + 2j
    assert capsys.readouterr().err == ""


def test_no_word_for_what_only_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with compiling("the kernels", patience=0.01):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_no_word_for_kernels_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "kernel_of_test.py").write_text(
        "from numba import njit\n@njit(cache=True)\ndef kernel(x):\n    return x + 1\n"
    )
    code = (
        "from trisparse.progress import compiling; from kernel_of_test import kernel\n"
        "with compiling('the kernels', patience=0.0): kernel(1)"
    )
    path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path.cwd())!r}]; "
    for said in (SAID, re.compile("")):
        done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
        assert said.fullmatch(done.stderr), done.stderr


def test_an_error_while_compiling_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError, match="mine"), compiling("the kernels", patience=0.0):
        njit(lambda x: x - 1)(1)
        raise KeyError("mine")
    assert SAID.fullmatch(capsys.readouterr().err)


def test_a_word_while_others_compile(capsys: pytest.CaptureFixture[str]) -> None:
    with compiled_elsewhere("the kernels", patience=0.01):
        threading.Event().wait(0.2)
    assert SAID.fullmatch(capsys.readouterr().err)
    with compiled_elsewhere("the kernels", patience=500):
        pass
    assert capsys.readouterr().err == ""
