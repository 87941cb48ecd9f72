"""What all commands share: options with one name and default, how typer fills an object, and exit codes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

import typer

from trisparse.commands.classify_text import classify_text
from trisparse.commands.classify_video import classify_video
from trisparse.commands.embed import embed
from trisparse.commands.options import Options, check_choice, filled_by_typer
from trisparse.commands.segment import segment

from ..conftest import street, write_clip
from ..stand_ins import Stub

Run = Callable[..., Any]
COMMANDS = {"segment": segment, "classify-video": classify_video, "embed": embed, "classify-text": classify_text}


@dataclass(frozen=True, kw_only=True)
class Baking(Options):
    output: Annotated[Path, typer.Option("--output", "-o")]
    model: Annotated[str, typer.Option()] = "oven"
    degrees: Annotated[int | None, typer.Option(min=0)] = None


def bake(given: list[str], outcome: int | BaseException = 0) -> tuple[Any, list[Any]]:
    """Run a command of Baking; its result, and the calls of its function."""
    from typer.testing import CliRunner

    calls: list[Any] = []

    @filled_by_typer(Baking)
    def command(loaves: list[str], options: Baking) -> int:
        """Bake."""
        calls.append((loaves, options))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, given), calls


def test_an_object_with_the_options_reaches_the_function() -> None:
    result, calls = bake(["rye", "oat", "-o", "shelf", "--degrees", "220", "--dtype", "bf16"])
    assert result.exit_code == 0, result.output
    assert calls == [(["rye", "oat"], Baking(output=Path("shelf"), degrees=220, dtype="bf16"))]
    shown = bake(["--help"])[0].stdout
    assert "Bake." in shown and "--degrees" in shown and "--overwrite" in shown


@pytest.mark.parametrize(
    ("given", "outcome", "code"),
    [
        (["rye", "-o", "shelf"], 0, 0),
        (["rye", "-o", "shelf"], 2, 1),
        (["rye", "-o", "shelf"], ValueError("no flour"), 2),
        (["rye", "-o", "shelf"], OSError("no shelf"), 2),
        (["rye", "-o", "shelf"], ImportError("no oven"), 2),
        (["rye", "-o", "shelf"], KeyboardInterrupt(), 130),
        (["rye"], 0, 2),
        (["-o", "shelf"], 0, 2),
        (["rye", "-o", "shelf", "--degrees", "-1"], 0, 2),
        (["rye", "-o", "shelf", "--dtype", "fp8"], 0, 2),
    ],
)
def test_the_rule_of_exit_codes(given: list[str], outcome: int | BaseException, code: int) -> None:
    assert bake(given, outcome)[0].exit_code == code


def test_choices() -> None:
    check_choice("--colour", "red", ("red", "green"))
    with pytest.raises(ValueError, match=r"^--colour must be one of red, green, got 'gren'; did you mean 'green'\?$"):
        check_choice("--colour", "gren", ("red", "green"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_option_has_one_name_and_default(command: str) -> None:
    given = inspect.signature(COMMANDS[command]).parameters
    defaults = {"dtype": "auto", "threads": None, "overwrite": False, "debug": False}
    assert {name: given[name].default for name in defaults} == defaults
    assert {"output", "model"} <= set(given)
    assert not {"columns", "column"} <= set(given)
    if command in ("embed", "classify-text", "segment"):
        assert given["invalid"].default == "error"
    if command in ("segment", "classify-video"):
        assert given["picture"].default is None


def test_the_commands_on_texts_take_the_same_options() -> None:
    first, second = (set(inspect.signature(COMMANDS[name]).parameters) for name in ("embed", "classify-text"))
    assert second - first == {"top"} and first <= second


@pytest.fixture
def inputs(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[str, Path, Path, list[object]]:
    """A command, an input that it can use and one that it cannot, and the options that it needs."""
    command = request.param
    if command == "segment":
        street().tofile(tmp_path / "good.bin")
        (tmp_path / "bad.bin").write_bytes(b"seven b")
        return command, tmp_path / "good.bin", tmp_path / "bad.bin", ["--model", model]
    if command == "classify-video":
        pytest.importorskip("av")
        write_clip(tmp_path / "good.mp4", 6)
        (tmp_path / "bad.mp4").write_bytes(b"nothing of a video")
        return command, tmp_path / "good.mp4", tmp_path / "bad.mp4", ["--model", "tsm-motion-digits"]
    import nlp.texts.classifier
    import nlp.texts.embedder

    if command == "embed":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(nlp.texts.embedder, "Embedder", Stub)
    monkeypatch.setattr(nlp.texts.classifier, "TextClassifier", Stub)
    (tmp_path / "good.txt").write_text("one\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    return command, tmp_path / "good.txt", tmp_path / "bad.txt", ["--model", "m", "--dtype", "fp32"]


SUFFIXES = {"segment": ".ply", "classify-video": ".jsonl", "embed": ".parquet", "classify-text": ".jsonl"}


@pytest.mark.parametrize("inputs", COMMANDS, indirect=True)
def test_exit_codes(trisparse: Run, inputs: tuple[str, Path, Path, list[object]], tmp_path: Path) -> None:
    command, good, bad, options = inputs
    out = tmp_path / f"out{SUFFIXES[command]}"
    several = tmp_path / ("several" if command == "segment" else f"several{SUFFIXES[command]}")
    for code, arguments in (
        (0, [good, "-o", out, *options]),
        (2, [good, "-o", out, *options]),  # exists
        (0, [good, "-o", out, *options, "--overwrite"]),
        (1, [bad, "-o", out, *options, "--overwrite"]),
        (1, [good, bad, "-o", several, *options]),
        (2, [good, "-o", tmp_path / "none" / out.name, *options]),
        (2, [tmp_path / f"absent{good.suffix}", "-o", out, *options, "--overwrite"]),
        (2, [good, "-o", out, *options, "--overwrite", "--dtype", "fp8"]),
        (2, [good, *options, "--output"]),
        (2, [good, "-o", out, *options, "--nonsense"]),
    ):
        result = trisparse(command, *arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert "Traceback" not in result.output
    unknown = ["--model", "unknown"] if "--dtype" in options else ["--model", "tsm-motion-digit"]
    result = trisparse(command, good, "-o", out, "--overwrite", *options[2:], *unknown)
    assert result.exit_code == 2 and unknown[1] in result.stderr, result.output
