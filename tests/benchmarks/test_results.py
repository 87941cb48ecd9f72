"""The CSV keeps what a run did not measure; tables print no speed-up where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import Row

SPCONV = Row("layers", "cloud", "k3", "spconv", "fp32", 1, "ok", 1e-7, 40.0, 39.0, 41.0, 38.0, rounds=7, device="box")
OURS = replace(SPCONV, competitor="trisparse", wall_ms=10.0, cpu_ms=9.5)


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.csv"
    results.merge(path, [SPCONV, OURS])
    assert sorted(results.read(path), key=lambda row: row.competitor) == [SPCONV, OURS]
    assert results.read(tmp_path / "absent.csv") == []


def test_a_rerun_replaces_only_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    other = replace(OURS, threads=2)
    results.merge(path, [SPCONV, OURS, other])
    results.merge(path, [replace(OURS, wall_ms=8.0)])
    kept = {(row.competitor, row.threads): row.wall_ms for row in results.read(path)}
    assert kept == {("spconv", 1): 40.0, ("trisparse", 1): 8.0, ("trisparse", 2): 10.0}
    assert list(tmp_path.iterdir()) == [path]


def test_speedup_is_against_spconv_on_one_thread() -> None:
    assert results.speedup(OURS, [OURS, SPCONV]) == (4.0, "spconv")
    assert results.speedup(OURS, [OURS, SPCONV], "cpu_ms") == (4.0, "spconv")
    assert results.speedup(SPCONV, [OURS, SPCONV]) is None


@pytest.mark.parametrize("broken", ["spconv", "trisparse"])
def test_no_speedup_with_a_wrong_result(broken: str) -> None:
    rows = [replace(row, status="wrong") if row.competitor == broken else row for row in (SPCONV, OURS)]
    assert [results.speedup(row, rows) for row in rows] == [None, None]
    assert " x " not in results.table(rows)
    assert "WRONG" in results.table(rows)
    assert "×" not in results.markdown(rows)


def test_without_spconv_plain_torch_is_the_baseline() -> None:
    torch_row = replace(SPCONV, competitor="plain torch", wall_ms=20.0)
    assert results.speedup(OURS, [torch_row, OURS]) == (2.0, "plain torch")


def test_table_and_markdown() -> None:
    skipped = replace(SPCONV, competitor="spconv-triton", status="skipped: not installed", wall_ms=None)
    text = results.table([SPCONV, OURS, skipped])
    assert "4.00 x spconv" in text
    assert text.endswith("k3, spconv-triton fp32, 1 threads: skipped: not installed")
    assert results.markdown([OURS, SPCONV]).splitlines() == [
        "| workload | case | spconv fp32, ms | trisparse fp32, ms |",
        "|---|---|---:|---:|",
        "| cloud | k3 | 40 | 10 (4.0×) |",
    ]


def test_file_is_named_by_the_device() -> None:
    assert results.path_for("NVIDIA H100 80GB HBM3").parts[-2:] == ("nvidia-h100-80gb-hbm3", "pointcloud.csv")


TEXT = Row("throughput", "20ng", "9 documents", "HF, arrival order", "fp32", 1, "ok", wall_ms=40.0, cpu_ms=20.0,
           rounds=2, tokens=100, padding=0.5, cosine=1.0, device="box")  # fmt: skip


def test_texts_are_held_against_padded_fp32_on_as_many_threads() -> None:
    bf16 = replace(TEXT, dtype="bf16", wall_ms=30.0)
    two = replace(TEXT, threads=2, wall_ms=10.0)
    ours = replace(TEXT, competitor="trisparse packed, Packer", dtype="bf16", wall_ms=8.0, cpu_ms=4.0)
    group = [TEXT, bf16, two, ours]
    assert results.speedup(TEXT, group) is None
    assert results.speedup(bf16, group) == (40 / 30, "HF, arrival order")
    assert results.speedup(ours, group, "cpu_ms") == (5.0, "HF, arrival order")
    assert results.speedup(replace(ours, threads=2), group) == (10 / 8, "HF, arrival order")


def test_columns_that_no_row_fills_are_left_out() -> None:
    text = results.table([TEXT, replace(TEXT, competitor="trisparse", accuracy=75.25, accuracy_se=0.84, change=-1.0)])
    head = text.splitlines()[0]
    assert "tok/CPU s" in head and "padding" in head and "accuracy" in head
    assert "GFLOP/s" not in head and "MiB" not in head and "kept" not in head
    assert "5000" in text and "2500" in text and "50%" in text and "75.2 ± 0.8" in text and "-1.0" in text
    assert "tok/s" not in results.table([SPCONV, OURS]).splitlines()[0]
    assert results.table([]) == ""


def test_text_rows_survive_the_file(tmp_path: Path) -> None:
    row = replace(TEXT, kept="100 80 60", accuracy=75.25, accuracy_se=0.5, change=-0.75, change_se=0.25)
    results.merge(tmp_path / "x.csv", [row])
    assert results.read(tmp_path / "x.csv") == [row]
