"""The tables of the documents are what the CSVs of benchmarks/results give."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.results import Row

MARKED = "before\n<!-- table: {name} -->\nold\n<!-- end of table -->\nbehind\n"


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    found = tables.read_rows()
    assert all(found.values()), "the CSVs are part of the repository"
    return found


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: path.name)
def test_the_committed_tables_are_those_of_the_csvs(path: Path, rows: dict[str, list[Row]]) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.filled(text, rows) == text, "run python -m benchmarks.tables --write"


def test_every_table_is_shown_and_every_row_has_the_cells_of_its_head(rows: dict[str, list[Row]]) -> None:
    shown = "".join(path.read_text(encoding="utf-8") for path in tables.documents())
    for name, make in tables.TABLES.items():
        assert f"<!-- table: {name} -->" in shown
        for table in make(rows).split("\n\n"):
            lines = table.splitlines()
            assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1, name


def test_every_table_of_a_document_is_marked() -> None:
    for path in tables.documents():
        text = path.read_text(encoding="utf-8")
        assert text.count("<!-- table:") == text.count("<!-- end of table -->")


@pytest.mark.parametrize("domain", tables.DOMAINS)
def test_another_figure_in_the_csv_makes_the_documents_differ(domain: str, rows: dict[str, list[Row]]) -> None:
    """So that the comparison above cannot pass for a table that does not read its rows."""
    slower = [replace(row, wall_ms=(row.wall_ms or 0) * 3, cpu_ms=(row.cpu_ms or 0) * 3) for row in rows[domain]]
    text = (tables.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert tables.filled(text, {**rows, domain: slower}) != text


def test_headlines_show_cpu_time_on_one_thread_of_one_part(rows: dict[str, list[Row]]) -> None:
    (dense,) = (
        row.cpu_ms for row in rows["video"]
        if (row.case, row.workload, row.shape) == ("delta", "a.mp4", "ResNet-50, 224, 60 frames")
        and (row.competitor, row.dtype, row.threads) == ("accelerated, dense", "fp32", 1)
    )  # fmt: skip
    assert dense is not None
    (line,) = (line for line in tables.headlines(rows).splitlines() if "ResNet-50 of 224²" in line)
    assert f"| {dense / 60:.1f} |" in line


def test_a_wrong_result_is_no_headline(rows: dict[str, list[Row]]) -> None:
    wrong = [replace(row, status="wrong") if row.competitor == "spconv" else row for row in rows["pointcloud"]]
    with pytest.raises(KeyError):
        tables.headlines({**rows, "pointcloud": wrong})


def test_filled_replaces_what_stands_between_the_marks_and_nothing_else(rows: dict[str, list[Row]]) -> None:
    text = tables.filled(MARKED.format(name="video-motion"), rows)
    assert text.startswith("before\n<!-- table: video-motion -->\n\n|") and text.endswith("table -->\nbehind\n")
    assert "old" not in text
    assert tables.filled(text, rows) == text


def test_filled_refuses_a_table_it_does_not_know(rows: dict[str, list[Row]]) -> None:
    with pytest.raises(ValueError, match=re.escape("must be one of headlines, conditions")):
        tables.filled(MARKED.format(name="video-emotion"), rows)


def test_main_names_the_documents_that_differ_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(MARKED.format(name="headlines"))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "documents", lambda: [readme])
    assert tables.main([]) == 1
    assert "README.md: differs" in capsys.readouterr().out and "old" in readme.read_text()
    assert tables.main(["--write"]) == 0
    assert "README.md: written" in capsys.readouterr().out and "MinkUNet" in readme.read_text()
    assert tables.main([]) == 0 and capsys.readouterr().out == ""


def test_clips_are_shown_in_cpu_time_and_clouds_in_wall_time(rows: dict[str, list[Row]]) -> None:
    """Of a reader, whose wall time waits for the disk and for other processes, and of a network on one thread."""
    for domain, case, measure in (("video", "reader", "cpu_ms"), ("pointcloud", "network", "wall_ms")):
        shown = [
            row for row in rows[domain]
            if row.case == case and row.threads == 1 and row.status == "ok" and "limit" not in row.competitor
        ]  # fmt: skip
        table = tables.TABLES[f"{domain}-{case}"](rows)
        other = {"cpu_ms": "wall_ms", "wall_ms": "cpu_ms"}[measure]
        values = {f"{getattr(row, measure):.0f}" for row in shown if getattr(row, measure) >= 100}
        others = {f"{getattr(row, other):.0f}" for row in shown if getattr(row, other) >= 100} - values
        cells = set(re.findall(r"(?<=\| )\d{3,}(?= )", table))
        assert cells == values and others - cells == others
