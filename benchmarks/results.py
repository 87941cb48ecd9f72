"""Measured rows: a long-form CSV in which a re-run replaces only its own rows, and the tables made from it."""

from __future__ import annotations

import csv
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import slug
from common_models.files import replace_atomically

FOLDER = Path(__file__).resolve().parent / "results"
KEY = ("device", "case", "workload", "shape", "competitor", "dtype", "threads")
# Speed-ups are against the first of these that has a right result: (competitor, dtype, threads).
BASELINES = (("spconv", "fp32", 1), ("spconv", "fp16", 1), ("plain torch", "fp32", 1), ("plain torch", "fp16", 1))
# Those of video, where ours is held against the same dtype and threads if they were measured, else against fp32 on one
# thread (frames: uint8).
VIDEO_BASELINES = (
    "decord", "every frame", "accelerated, dense", "zeros and slice copies", "library, dense", "NCHW, slice copies",
    "as loaded",
)  # fmt: skip
# Those of language, each in fp32 on the same number of threads.
NLP_BASELINES = ("HF, arrival order", "padded SDPA", "probabilities, summed", "boolean mask", "DynamicCache")


@dataclass
class Row:
    """One competitor on one trial. Times are medians over rounds; `status` is ok, wrong, skipped: ... or failed: ...

    Texts have more columns: `tokens` that the documents hold, the share of `padding` among the cells computed, the
    percentages of tokens `kept` alive before each layer and at the end, the mean `cosine` with the right embedding,
    `accuracy` in percent with its standard error, and its `change` in points from that of the unpruned model, with the
    standard error of the difference over the same documents. Of generation `cache_mib` is the memory of keys and
    values, `perplexity` that of held-out text, and `change` that of its logarithm, in hundredths.
    """

    case: str
    workload: str
    shape: str
    competitor: str
    dtype: str
    threads: int
    status: str = ""
    error: float | None = None
    wall_ms: float | None = None
    wall_p20_ms: float | None = None
    wall_p80_ms: float | None = None
    cpu_ms: float | None = None
    peak_mib: float | None = None
    gflop: float | None = None
    gflop_per_s: float | None = None
    gb_per_s: float | None = None
    gemm_share: float | None = None
    copy_share: float | None = None
    rounds: int = 0
    tokens: int = 0
    padding: float | None = None
    kept: str = ""
    cosine: float | None = None
    accuracy: float | None = None
    accuracy_se: float | None = None
    change: float | None = None
    change_se: float | None = None
    cache_mib: float | None = None
    perplexity: float | None = None
    device: str = ""
    cpu: str = ""
    versions: str = ""
    commit: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        self.date = self.date or date.today().isoformat()

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in KEY)


def path_for(device_name: str, domain: str = "pointcloud") -> Path:
    """The CSV of a device, named by it."""
    return FOLDER / slug(device_name) / f"{domain}.csv"


def read(path: Path) -> list[Row]:
    """The rows of a CSV; none where there is no file."""
    if not path.is_file():
        return []
    kinds = typing.get_type_hints(Row)

    def row(line: dict[str, str]) -> Row:
        values: dict[str, Any] = {name: _parse(text, kinds[name]) for name, text in line.items()}
        return Row(**values)

    with path.open(newline="") as file:
        return [row(line) for line in csv.DictReader(file)]


def merge(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` into the CSV in place of those with the same key, the others untouched; atomically."""
    kept = {row.key: row for row in read(path)}
    kept.update({row.key: row for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in sorted(kept.values(), key=lambda row: tuple(map(str, row.key))):
            writer.writerow({name: _format(value) for name, value in asdict(row).items()})


def speedup(row: Row, group: Sequence[Row], measure: str = "wall_ms") -> tuple[float, str] | None:
    """(factor, baseline) of a row within the rows of its trial; None for a baseline, a limit or a wrong result."""
    mine = getattr(row, measure)
    if row.status != "ok" or not mine or "limit" in row.competitor:
        return None
    alike = ((row.dtype, row.threads), ("fp32", 1), ("uint8", 1))
    texts = ((name, "fp32", row.threads) for name in NLP_BASELINES)
    for baseline in (*BASELINES, *texts, *((name, *kind) for kind in alike for name in VIDEO_BASELINES)):
        for other in group:
            if (other.competitor, other.dtype, other.threads) == baseline and other.status == "ok":
                return None if other is row else (getattr(other, measure) / mine, other.competitor)
    return None


def table(rows: Sequence[Row]) -> str:
    """Aligned text, one line per row, grouped by trial. A result that is not right shows no time and no speed-up.

    Columns that no row fills are left out.
    """
    lines: list[dict[str, str]] = []
    notes = []
    for group in _trials(rows):
        for row in group:
            if row.status not in ("ok", "wrong"):
                notes.append(f"{row.shape}, {row.competitor} {row.dtype}, {row.threads} threads: {row.status}")
                continue
            lines.append(_cells(row, group))
    head = [title for title in lines[0] if any(line[title] for line in lines)] if lines else []
    cells = [head, *([line[title] for title in head] for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*text, *notes])


def _cells(row: Row, group: Sequence[Row]) -> dict[str, str]:
    wall, cpu = speedup(row, group), speedup(row, group, "cpu_ms")
    right = row.status == "ok"
    return {
        "shape": row.shape,
        "competitor": row.competitor,
        "dtype": row.dtype,
        "thr": str(row.threads),
        "wall ms": _number(row.wall_ms) if right else "WRONG",
        "p20-p80": f"{_number(row.wall_p20_ms)}-{_number(row.wall_p80_ms)}" if row.rounds > 1 else "",
        "CPU ms": _number(row.cpu_ms),
        "tok/s": _number(per_second(row)),
        "tok/CPU s": _number(per_second(row, "cpu_ms")),
        "MiB": _number(row.peak_mib),
        "GFLOP/s": _number(row.gflop_per_s) if row.gflop else "",
        "of mm": _percent(row.gemm_share),
        "of copy": _percent(row.copy_share),
        "padding": _percent(row.padding),
        "kept %": row.kept,
        "cosine": "" if row.cosine is None else f"{row.cosine:.4f}",
        "accuracy": with_error(row.accuracy, row.accuracy_se),
        "change": with_error(row.change, row.change_se, signed=True),
        "cache MiB": _number(row.cache_mib),
        "perplexity": _number(row.perplexity),
        "error": _number(row.error),
        "speed-up": f"{wall[0]:.2f} x {wall[1]}" if wall else "",
        "by CPU": f"{cpu[0]:.2f}" if cpu else "",
    }


def per_second(row: Row, measure: str = "wall_ms") -> float | None:
    """Tokens of documents, padding not counted, per second of wall or CPU time; None where none were timed."""
    time = getattr(row, measure)
    return row.tokens / time * 1e3 if row.status == "ok" and row.tokens and time else None


def with_error(value: float | None, error: float | None, signed: bool = False) -> str:
    """A percentage or points with the standard error, like "75.3 ± 0.8"."""
    if value is None:
        return ""
    return f"{value:{'+' if signed else ''}.1f}" + ("" if error is None else f" ± {error:.1f}")


def markdown(rows: Sequence[Row], threads: int = 1, measure: str = "wall_ms") -> str:
    """One line per trial for a document: milliseconds of each competitor, ours with its speed-up, at `threads`.

    Args:
        measure: "wall_ms" or "cpu_ms".
    """
    shown = [
        row for row in rows if "limit" not in row.competitor and (row.threads == threads or row.competitor == "spconv")
    ]
    columns = list(dict.fromkeys((row.competitor, row.dtype) for row in shown if row.status == "ok"))
    columns.sort(key=lambda c: (("spconv", "plain torch").index(c[0]) if c[0] in ("spconv", "plain torch") else 2, c))
    lines = ["| workload | case | " + " | ".join(f"{name} {dtype}, ms" for name, dtype in columns) + " |"]
    lines.append("|---|---|" + "---:|" * len(columns))
    for group in _trials(shown):
        cells = []
        for column in columns:
            row = next((row for row in group if (row.competitor, row.dtype) == column), None)
            if row is None or row.status != "ok":
                cells.append("wrong" if row is not None and row.status == "wrong" else "")
                continue
            times = speedup(row, group, measure) if row.competitor == "trisparse" else None
            cells.append(_number(getattr(row, measure)) + (f" ({times[0]:.1f}×)" if times else ""))
        lines.append(f"| {group[0].workload} | {group[0].shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _trials(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.device, row.case, row.workload, row.shape), []).append(row)
    return list(groups.values())


def _parse(text: str, kind: object) -> object:
    if kind is int:
        return int(text)
    if kind is str:
        return text
    return float(text) if text else None


def _format(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0:
        return "0"
    if value < 1e-2:
        return f"{value:.1e}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
