"""The documents' tables of language, from the rows of the CSV."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import results
from benchmarks.nlp.ours import PACKER
from benchmarks.nlp.peers import CT2_SORTED, HF_ARRIVAL, HF_SORTED, ORT_SORTED, SENTENCE_TRANSFORMERS
from benchmarks.results import Row, per_second, speedup, with_error

MAIN_CORPUS = "20ng"
# Points of accuracy that the pruned model of the table may lose.
MOST_LOST = 1.0
_WAYS = (
    (HF_ARRIVAL, "fp32"), (HF_ARRIVAL, "bf16"), (HF_SORTED, "fp32"), (SENTENCE_TRANSFORMERS, "fp32"),
    (ORT_SORTED, "fp32"), (ORT_SORTED, "int8"), (CT2_SORTED, "fp32"), (CT2_SORTED, "int8"),
    (PACKER, "fp32"), (PACKER, "bf16"),
)  # fmt: skip
_OTHERS = {
    "r8": "Reuters R8", "movie": "film reviews", "sst2": "SST-2", "32x128": "32 × 128 tokens, no padding",
    "32x512": "32 × 512 tokens, no padding",
}  # fmt: skip


def markdown(rows: Sequence[Row], threads: int = 1) -> str:
    """20 Newsgroups way by way, the other corpora in one line each, on `threads` threads; other cases follow.

    A pruned model is in the table where its accuracy was measured: the fastest that lost at most a point, and the
    fastest that learned.
    """
    here = [row for row in rows if row.threads == threads]
    parts = [
        _main([row for row in here if row.case == "throughput"], [row for row in rows if row.case == "accuracy"]),
        _others([row for row in here if row.case == "throughput"]),
        _generation([row for row in here if row.case == "generation"]),
        _milliseconds([row for row in here if row.case == "attention"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _main(rows: Sequence[Row], accuracies: Sequence[Row]) -> str:
    """A line for each way to embed 20 Newsgroups."""
    rows = [row for row in rows if row.workload == MAIN_CORPUS and row.status == "ok"]
    of = {(row.competitor, row.dtype): row for row in rows}
    judged = {
        (row.competitor, row.dtype): row
        for row in accuracies
        if row.workload == MAIN_CORPUS and row.status == "ok" and row.change is not None
    }
    shown = [of[way] for way in _WAYS if way in of]
    shown += [row for row in (_best(rows, judged, learned) for learned in (False, True)) if row is not None]
    if not shown:
        return ""
    lines = [
        f"| 20 Newsgroups, {shown[0].threads} thread{'s' * (shown[0].threads > 1)} | tokens per CPU second | "
        "speed-up | cosine | accuracy, points |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in shown:
        gain = speedup(row, rows, "cpu_ms")
        accuracy = judged.get((row.competitor, row.dtype))
        changed = with_error(accuracy.change, accuracy.change_se, signed=True) if accuracy is not None else ""
        cosine = "" if row.cosine is None else f"{row.cosine:.4f}"
        cells = (f"{row.competitor} {row.dtype}", _tokens(row), f"{gain[0]:.2f}×" if gain else "", cosine, changed)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _best(rows: Sequence[Row], judged: dict[tuple[str, str], Row], learned: bool) -> Row | None:
    """The fastest pruned model, of those that learned or of those that lost little enough."""

    def fits(row: Row) -> bool:
        accuracy = judged.get((row.competitor, row.dtype))
        if accuracy is None or accuracy.change is None or not accuracy.kept or not row.cpu_ms:
            return False
        return (
            ("finetuned" in row.competitor)
            if learned
            else ("finetuned" not in row.competitor and accuracy.change >= -MOST_LOST)
        )

    return min((row for row in rows if fits(row)), key=lambda row: row.cpu_ms or 0.0, default=None)


def _others(rows: Sequence[Row]) -> str:
    """A line for each other corpus: padding, tokens per second of the baselines, of the best fp32 peer and of ours."""
    lines = []
    for name, title in _OTHERS.items():
        group = [row for row in rows if row.workload == name and row.status == "ok" and row.cpu_ms]
        of = {(row.competitor, row.dtype): row for row in group}
        base = of.get((HF_ARRIVAL, "fp32"))
        if base is None:
            continue
        peers = [row for row in group if row.dtype == "fp32" and not row.competitor.startswith(("trisparse", "torch."))]
        best = min(peers, key=lambda row: row.cpu_ms or 0.0)
        cells = [
            title, "" if base.padding is None else f"{base.padding:.0%}", _tokens(base),
            _tokens(of.get((HF_SORTED, "fp32"))), f"{_tokens(best)} ({best.competitor})",
            *(_with_gain(of.get((PACKER, dtype)), group) for dtype in ("fp32", "bf16")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return ""
    head = [
        "| tokens per CPU second | padding | HF, arrival order | HF, length-sorted | fastest fp32 peer | ours fp32 | "
        "ours bf16 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *lines])


def _generation(rows: Sequence[Row]) -> str:
    """A line for each cache."""
    rows = [row for row in rows if row.status == "ok" and row.perplexity is not None]
    if not rows:
        return ""
    lines = [
        f"| decoding, {rows[0].shape} | tokens/s | cache, MiB | perplexity |",
        "|---|---:|---:|---:|",
    ]
    for row in sorted(
        rows, key=lambda row: (row.dtype != "fp32", row.competitor.startswith("trisparse"), row.competitor)
    ):
        speed = per_second(row) or 0.0
        lines.append(
            f"| {row.competitor} {row.dtype} | {speed:.0f} | {row.cache_mib or 0:.2f} | {row.perplexity:.2f} |"
        )
    return "\n".join(lines)


def _milliseconds(rows: Sequence[Row]) -> str:
    return results.markdown(rows, rows[0].threads) if rows else ""


def _tokens(row: Row | None) -> str:
    speed = per_second(row, "cpu_ms") if row is not None else None
    return f"{speed:,.0f}" if speed else ""


def _with_gain(row: Row | None, group: Sequence[Row]) -> str:
    gain = speedup(row, group, "cpu_ms") if row is not None else None
    return _tokens(row) + (f" ({gain[0]:.2f}×)" if gain else "")
