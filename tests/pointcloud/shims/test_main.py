"""Scripts and modules run on the stand-ins as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pointcloud import shims
from pointcloud.shims.__main__ import main

SCRIPT = "import sys, torch_scatter, beside\nprint(__name__, torch_scatter.__version__, sys.argv[1:], beside.here)\n"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    shims.uninstall()
    sys.modules.pop("beside", None)


def _files(folder: Path) -> Path:
    (folder / "beside.py").write_text("here = 'beside'\n")
    script = folder / "run_me.py"
    script.write_text(SCRIPT)
    return script


def test_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(_files(tmp_path)), "--lr", "3", "-m"])
    out = capsys.readouterr().out
    assert out.startswith("__main__ ") and "+trisparse ['--lr', '3', '-m'] beside" in out


def test_module(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _files(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    main(["-m", "run_me", "--lr", "3"])
    assert "+trisparse ['--lr', '3'] beside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["nowhere.py"], "SCRIPT must be a file, got nowhere.py"), (["--replace", "x", "a.py"], "replace must be among")],
)
def test_usage(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
