"""The README's tables of language, from the rows of the CSV."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import results
from benchmarks.nlp.peers import HF_ARRIVAL
from benchmarks.results import Row, per_second, speedup, with_error

DTYPES = ("fp32", "fp16", "bf16", "int8")


def markdown(rows: Sequence[Row], threads: int = 1) -> str:
    """Tokens per second of CPU time of each way on each corpus, on `threads` threads; then accuracies.

    Rows of attention follow as milliseconds.
    """
    parts = [
        _speeds([row for row in rows if row.case == "throughput" and row.threads == threads]),
        _accuracies([row for row in rows if row.case == "accuracy"]),
        _milliseconds([row for row in rows if row.case == "attention" and row.threads == threads]),
    ]
    return "\n\n".join(part for part in parts if part)


def _speeds(rows: Sequence[Row]) -> str:
    """A line for each competitor, a column for each corpus: thousands of tokens a second and the speed-up."""
    if not rows:
        return ""
    corpora = list(dict.fromkeys(row.workload for row in rows))
    of = {(row.workload, row.competitor, row.dtype): row for row in rows}
    lines = [
        f"| 1000 tokens per CPU second (speed-up over {HF_ARRIVAL}, fp32) | " + " | ".join(corpora) + " | cosine |",
        "|---|" + "---:|" * (len(corpora) + 1),
    ]
    lines.append(
        "| padding in arrival order | "
        + " | ".join(_padding(of.get((name, HF_ARRIVAL, "fp32"))) for name in corpora)
        + " | |"
    )
    for competitor, dtype in _competitors(rows):
        cells, cosines = [], []
        for name in corpora:
            row = of.get((name, competitor, dtype))
            if row is None or row.status != "ok":
                cells.append("wrong" if row is not None and row.status == "wrong" else "")
                continue
            gain = speedup(row, [other for other in rows if other.workload == name], "cpu_ms")
            speed = per_second(row, "cpu_ms") or 0.0
            cells.append(f"{speed / 1e3:.2f}" + (f" ({gain[0]:.2f}×)" if gain else ""))
            cosines += [] if row.cosine is None else [row.cosine]
        if any(cells):
            least = f"{min(cosines):.4f}" if cosines else ""
            lines.append(f"| {competitor} {dtype} | " + " | ".join(cells) + f" | {least} |")
    return "\n".join(lines)


def _accuracies(rows: Sequence[Row]) -> str:
    """A line for each model, a column for each corpus: accuracy, change in points, tokens alive at the end."""
    if not rows:
        return ""
    corpora = list(dict.fromkeys(row.workload for row in rows))
    of = {(row.workload, row.competitor, row.dtype): row for row in rows}
    lines = [
        "| accuracy, % (change, points; tokens alive before each layer and at the end, %) | "
        + " | ".join(corpora)
        + " |"
    ]
    lines.append("|---|" + "---:|" * len(corpora))
    for competitor, dtype in _competitors(rows):
        cells = []
        for name in corpora:
            row = of.get((name, competitor, dtype))
            if row is None or row.status != "ok":
                cells.append("wrong" if row is not None and row.status == "wrong" else "")
                continue
            changed = with_error(row.change, row.change_se, signed=True) if row.change_se else ""
            notes = "; ".join(part for part in (changed, row.kept) if part)
            cells.append(with_error(row.accuracy, row.accuracy_se) + (f" ({notes})" if notes else ""))
        if any(cells):
            lines.append(f"| {competitor} {dtype} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _milliseconds(rows: Sequence[Row]) -> str:
    return results.markdown(rows, rows[0].threads) if rows else ""


def _competitors(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(competitor, dtype): Hugging Face, then who serves its models, then ours; limits not at all."""
    found = dict.fromkeys((row.competitor, row.dtype) for row in rows if "limit" not in row.competitor)

    def place(one: tuple[str, str]) -> tuple[bool, bool, bool, str, int]:
        name, dtype = one
        ours = name.startswith("trisparse")
        return ours, not name.startswith("HF"), ours and "packed" not in name, name, DTYPES.index(dtype)

    return sorted(found, key=place)


def _padding(row: Row | None) -> str:
    return "" if row is None or row.padding is None else f"{row.padding:.0%}"
