"""What the documents say: the README's code runs, links and files exist, commands and options are there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "examples")
    for path in folder.glob("*.md")
    if not path.name.startswith(".")
)
PAGE_IDS = [str(path.relative_to(ROOT)) for path in PAGES]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(#[^)\s]*)?\)")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in a language; "" for those that name none."""
    return [code for name, code in _BLOCK.findall(text) if name == language]


def named_paths(text: str) -> Iterator[str]:
    """Files and folders of the repository that a page names in backticks; `<op>` and the like stand for many."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for name in re.findall(r"`([\w.-]+(?:/[\w.-]*)+)`", text):
        if name.split("/")[0] in tops and not name.startswith("."):
            yield name


def test_there_are_the_pages_that_the_readme_promises() -> None:
    names = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/troubleshooting.md"}
    assert names <= set(PAGE_IDS)


def test_the_readmes_code_runs_and_has_at_most_twelve_lines(capsys: pytest.CaptureFixture[str]) -> None:
    import nlp

    pytest.importorskip("transformers")
    if "all-minilm-l6-v2" not in nlp.list_pretrained():
        pytest.skip("all-minilm-l6-v2 is not installed")
    (code,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    counts, frames, embeddings = capsys.readouterr().out.splitlines()
    assert ast.literal_eval(counts)["road"] > 1000
    shares = ast.literal_eval(frames.partition("]) ")[2])
    assert len(shares) == 8 and shares[1] == "0%" and shares[4] != "0%"
    assert embeddings == "(2, 384)"


def test_the_readme_has_one_table_of_figures_which_is_generated() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figures, _, behind = text.partition("<!-- end of table -->")
    assert re.search(r"\d ms|×\)", behind) is None and figures.count("<!-- table:") == 1


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_relative_links_lead_to_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = [
        target for target, _ in _LINK.findall(text)
        if "://" not in target and not (path.parent / target).resolve().exists()
    ]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_files_named_in_backticks_are_there(path: Path) -> None:
    names = set(named_paths(path.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_files_that_are_not_there_are_found_out() -> None:
    assert list(named_paths("`nlp/none.py` `tests/<op>.py` `a/b` `docs/`")) == ["nlp/none.py", "docs/"]


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_python_blocks_are_python_and_the_names_of_packages_are_public(path: Path) -> None:
    import nlp
    import pointcloud
    import trisparse
    import video

    packages = {"nlp": nlp, "pointcloud": pointcloud, "spconv": pointcloud, "trisparse": trisparse, "video": video}
    for code in blocks(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
                assert hasattr(packages[node.value.id], node.attr), f"{path.name}: {node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_commands_and_their_options_are_there(path: Path) -> None:
    typer = pytest.importorskip("typer")
    from trisparse.cli import app

    commands = typer.main.get_command(app).commands
    for block in blocks(path.read_text(encoding="utf-8"), ""):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "trisparse" or words[1:2] == ["COMMAND"] or len(words) < 2:
                continue
            assert words[1] in commands, line
            known = {name for parameter in commands[words[1]].params for name in parameter.opts}
            assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, line


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_targets_of_make_are_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = [word for found in re.findall(r"`make ([a-z][a-z -]*)`", text) for word in found.split()]
    named += re.findall(r"^make ([a-z][\w-]*)", text, re.MULTILINE)
    assert [word for word in named if word not in targets] == []
