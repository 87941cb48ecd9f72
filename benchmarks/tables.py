"""`python -m benchmarks.tables [--write]`: the tables of README.md and docs/, made from the CSVs of benchmarks/results.

A table stands in a document between two comments, `<!-- table: NAME -->` and `<!-- end of table -->`. What is between
them is generated: nobody edits it by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.nlp import report
from benchmarks.nlp.ours import PACKER
from benchmarks.nlp.peers import HF_SORTED, ORT_SORTED
from benchmarks.results import Row, with_error

ROOT = Path(__file__).resolve().parents[1]
# The machine whose figures the documents show, and one without AVX-512, on which some point clouds were measured.
DEVICE, AVX2_DEVICE = "amd-epyc-avx512-bf16-2-cores", "amd-epyc-avx2-2-cores"
AVX2 = "pointcloud, AVX2"
DOMAINS = ("pointcloud", "video", "nlp")

Rows = Mapping[str, Sequence[Row]]
_MARKED = re.compile(r"(<!-- table: (?P<name>[^ ]*) -->\n)(?P<text>.*?)(<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True)
class Headline:
    """A row of the README's table.

    Attributes:
        where: the input, as a reader calls it; empty for that of the row above.
        what: the work.
        trial: domain, case, workload and shape in the CSV.
        against: what ours is held against, as a reader calls it.
        baseline: its competitor and dtype in the CSV.
        ours: our competitor in the CSV.
        parts: the times are shown for one of so many parts, like the frames of a clip.
    """

    where: str
    what: str
    trial: tuple[str, str, str, str]
    against: str
    baseline: tuple[str, str]
    ours: str = "trisparse"
    parts: int = 1


_NEWSGROUPS = ("nlp", "throughput", "20ng", "80 documents of 230 tokens in the mean, up to 512")
HEADLINES = (
    Headline(
        "benchmark-pc, 125,565 voxels",
        "map of a 3×3×3 kernel",
        ("pointcloud", "maps", "benchmark-pc 0.1 m", "submanifold k3"),
        "spconv",
        ("spconv", "fp32"),
    ),
    Headline(
        "",
        "MinkUNet 1.0 with its maps",
        ("pointcloud", "network", "benchmark-pc 0.1 m", "MinkUNet 1.0, maps rebuilt"),
        "spconv",
        ("spconv", "fp32"),
    ),
    Headline(
        "a.mp4, 1080p, static camera",
        "reading 3 × 10 random frames",
        ("video", "reader", "a.mp4", "10 random frames, 3 draws"),
        "torchcodec",
        ("torchcodec", "uint8"),
    ),
    Headline(
        "",
        "ResNet-50 of 224², a frame",
        ("video", "delta", "a.mp4", "ResNet-50, 224, 60 frames"),
        "`video.accelerate` alone",
        ("accelerated, dense", "fp32"),
        parts=60,
    ),
    Headline(
        "bikes.mp4, moving camera",
        "the same",
        ("video", "delta", "bikes.mp4", "ResNet-50, 224, 60 frames"),
        "`video.accelerate` alone",
        ("accelerated, dense", "fp32"),
        parts=60,
    ),
    Headline(
        "8 frames of 224²",
        "ResNet-50-TSM",
        ("video", "networks", "layer shapes", "ResNet-50-TSM, 8 frames of 224 x 224"),
        "torch, shift by slices",
        ("NCHW, slice copies", "fp32"),
    ),
    Headline(
        "20 Newsgroups, 80 documents",
        "all-MiniLM-L6-v2",
        _NEWSGROUPS,
        "Hugging Face, sorted by length",
        (HF_SORTED, "fp32"),
        PACKER,
    ),
    Headline("", "the same", _NEWSGROUPS, "ONNX Runtime, sorted by length", (ORT_SORTED, "fp32"), PACKER),
)


def headlines(rows: Rows) -> str:
    """The README's table: CPU milliseconds on one thread, ours with its speed-up over what it is held against."""
    lines = [
        "| real input | work | held against, fp32 | its time, ms | ours fp32, ms | ours bf16, ms |",
        "|---|---|---|---:|---:|---:|",
    ]
    for line in HEADLINES:
        domain, *trial = line.trial
        group = [row for row in rows[domain] if [row.case, row.workload, row.shape] == trial and row.threads == 1]
        of = {(row.competitor, row.dtype): row for row in group if row.status == "ok"}
        base = of[line.baseline]
        # Frames are uint8.
        ours = of.get((line.ours, "uint8")) or of[line.ours, "fp32"], of.get((line.ours, "bf16"))
        cells = [line.where, line.what, line.against, _ms(base.cpu_ms, line.parts)]
        cells += [_with_gain(row, base, line.parts) for row in ours]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conditions(rows: Rows) -> str:
    """On what, with which versions and at which commits the rows were measured."""
    lines = ["| rows | processor | measured | commits | versions |", "|---|---|---|---|---|"]
    for domain, found in rows.items():
        cells = [f"{domain}, {len(found):,}"]
        cells += [", ".join(sorted({getattr(row, name) for row in found})) for name in ("cpu", "date", "commit")]
        cells.append("; ".join(sorted({row.versions for row in found}, key=len)[-1:]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pruning(rows: Rows) -> str:
    """What each pruning policy keeps, costs and gains, on each corpus with labels."""
    judged = [row for row in rows["nlp"] if row.case == "accuracy" and row.status == "ok"]
    timed = {
        (row.workload, row.competitor, row.dtype): row
        for row in rows["nlp"]
        if row.case == "throughput" and row.status == "ok" and row.threads == 1
    }
    lines = [
        "| corpus | network | tokens left at the end | tokens per CPU second | cosine | accuracy | change, points |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in judged:
        speed = timed.get((row.workload, row.competitor, row.dtype))
        rate = results.per_second(speed, "cpu_ms") if speed is not None else None
        cells = [
            row.workload,
            f"{row.competitor} {row.dtype}",
            f"{row.kept.split()[-1]} %" if row.kept else "",
            f"{rate:,.0f}" if rate else "",
            "" if row.cosine is None else f"{row.cosine:.4f}",
            with_error(row.accuracy, row.accuracy_se),
            with_error(row.change, row.change_se, signed=True),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def motion(rows: Rows) -> str:
    """How often each network names the motion of a digit rightly, and its time."""
    lines = ["| network | right of the held-out clips | all of them, ms |", "|---|---:|---:|"]
    for row in rows["video"]:
        if row.case == "motion" and row.status == "ok" and row.threads == 1 and "limit" not in row.competitor:
            right = "" if row.error is None else f"{1 - row.error:.2f}"
            lines.append(f"| {row.competitor} {row.dtype} | {right} | {_ms(row.cpu_ms)} |")
    return "\n".join(lines)


def _case(domain: str, case: str, threads: int = 1, measure: str = "wall_ms", shape: str = "") -> Callable[[Rows], str]:
    """The table of a case, or of those of its shapes that begin so."""

    def make(rows: Rows) -> str:
        chosen = [row for row in rows[domain] if row.case == case and row.shape.startswith(shape)]
        return results.markdown(chosen, threads, measure)

    return make


def _texts(cases: Sequence[str], workload: str = "", but: str = "") -> Callable[[Rows], str]:
    """The tables that the language benchmark makes of these cases, of one workload or of all but one."""

    def make(rows: Rows) -> str:
        chosen = [row for row in rows["nlp"] if row.case in cases and row.workload != but]
        return report.markdown([row for row in chosen if row.workload == workload or not workload])

    return make


TABLES: dict[str, Callable[[Rows], str]] = {
    "headlines": headlines,
    "conditions": conditions,
    "pointcloud-maps": _case("pointcloud", "maps"),
    "pointcloud-layers": _case("pointcloud", "layers"),
    "pointcloud-resample": _case("pointcloud", "resample"),
    "pointcloud-network": _case("pointcloud", "network"),
    "pointcloud-network-two-threads": _case("pointcloud", "network", 2),
    "pointcloud-detectors": _case(AVX2, "detectors", measure="cpu_ms"),
    "pointcloud-folding": _case(AVX2, "folding", measure="cpu_ms"),
    "pointcloud-training": _case("pointcloud", "training"),
    "video-reader": _case("video", "reader", measure="cpu_ms"),
    "video-networks": _case("video", "networks", measure="cpu_ms"),
    "video-small": _case("video", "small", measure="cpu_ms"),
    "video-motion": motion,
    "video-delta": _case("video", "delta", measure="cpu_ms"),
    "video-skipping": _case("video", "skipping", measure="cpu_ms"),
    "video-shift": _case("video", "shift", measure="cpu_ms"),
    "video-shift-and-convolution": _case("video", "shift and 1x1 convolution", measure="cpu_ms"),
    "video-conv-update": _case("video", "conv_update", measure="cpu_ms"),
    "nlp-newsgroups": _texts(("throughput", "accuracy"), report.MAIN_CORPUS),
    "nlp-corpora": _texts(("throughput",), but=report.MAIN_CORPUS),
    "nlp-pruning": pruning,
    "nlp-generation": _texts(("generation",)),
    **{
        f"nlp-{what}": _case("nlp", "attention", shape=f"{what}:")
        for what in ("attention", "gradients", "importance", "compaction")
    },
}


def read_rows(folder: Path | None = None) -> dict[str, list[Row]]:
    """The rows of every domain, and under AVX2 those of point clouds on the other machine.

    Args:
        folder: of the CSVs of one machine; by default that of DEVICE.
    """
    own = results.FOLDER / DEVICE if folder is None else folder
    rows = {domain: results.read(own / f"{domain}.csv") for domain in DOMAINS}
    return {**rows, AVX2: results.read(results.FOLDER / AVX2_DEVICE / "pointcloud.csv")}


def filled(text: str, rows: Rows) -> str:
    """A document with its tables made anew.

    Raises:
        ValueError: a table of another name than those of TABLES.
    """

    def table(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise ValueError(f"a table's name must be one of {', '.join(TABLES)}, got {match['name']!r}")
        return f"{match[1]}\n{TABLES[match['name']](rows)}\n\n{match[4]}"

    return _MARKED.sub(table, text)


def documents(root: Path = ROOT) -> list[Path]:
    """The documents that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the documents with the CSVs, or write them; 1 where a document that is not written differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the documents; else only name those that differ")
    options = parser.parse_args(argv)
    rows = read_rows()
    stale = 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        new = filled(text, rows)
        if new == text:
            continue
        stale += 1
        if options.write:
            path.write_text(new, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'written' if options.write else 'differs from the CSVs: run with --write'}")
    return int(stale > 0 and not options.write)


def _ms(value: float | None, parts: int = 1) -> str:
    """Milliseconds in three digits."""
    if value is None:
        return ""
    value /= parts
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _with_gain(row: Row | None, base: Row, parts: int) -> str:
    if row is None or not row.cpu_ms or not base.cpu_ms:
        return ""
    gain = base.cpu_ms / row.cpu_ms
    return f"{_ms(row.cpu_ms, parts)} ({gain:.1f}×)" if gain >= 1.1 else f"{_ms(row.cpu_ms, parts)} ({gain:.2f}×)"


if __name__ == "__main__":
    sys.exit(main())
