"""A picture of a trace: what was decoded, computed and reused when, and how the answer went."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common_models.files import replace_atomically
from video.skip.policy import COMPUTE, EXIT, REUSE
from video.skip.trace import Trace, TraceEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BACKGROUND, _PANEL, _GRID, _TEXT, _FAINT = "#0e1116", "#151a21", "#39424e", "#e6e9ee", "#8d97a5"
_KEY, _DECODED, _CONVERTED, _COMPUTED, _RESET, _SIGNAL = (
    "#ffd166", "#5b8dd6", "#3fb6c6", "#4ecb71", "#ff5d5d", "#c8a2ff",
)  # fmt: skip
# Neighbouring answers must differ; classes beyond these share colours.
_ANSWERS = (
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#e45756",
    "#b279a2",
    "#72b7b2",
    "#eeca3b",
    "#9d755d",
    "#ff9da6",
    "#bab0ac",
)


def draw_timeline(
    trace: Trace, path: str | os.PathLike[str], *, title: str | None = None, labels: Sequence[str] | None = None
) -> None:
    """Draw a trace into a picture (PNG, SVG or PDF by its name), one row for each tier.

    From top to bottom: the answer, with its class where it lasts; the signal that decided; computed, converted and
    decoded frames (grey gaps are frames that were spared); key frames and packet sizes.

    Args:
        labels: names of the classes.

    Raises:
        ValueError: the trace is empty.
    """
    if not len(trace):
        raise ValueError("trace must have entries to be drawn, got an empty one")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing a time line needs matplotlib: pip install 'trisparse[video]'") from error
    entries = sorted(trace.entries, key=lambda entry: entry.index)
    edges = _edges(entries)
    figure = Figure(figsize=(15, 6.6), dpi=110, facecolor=_BACKGROUND)
    grid = figure.add_gridspec(
        4, 1, height_ratios=(1.0, 2.2, 1.9, 1.3), left=0.095, right=0.985, top=0.83, bottom=0.085, hspace=0.16
    )
    rows = [figure.add_subplot(grid[i], facecolor=_PANEL) for i in range(4)]
    _answers(rows[0], entries, edges, labels)
    _signal(rows[1], entries, edges)
    _tiers(rows[2], entries, edges)
    _packets(rows[3], entries, edges)
    for axes in rows:
        axes.set_xlim(edges[0], edges[-1])
        axes.tick_params(colors=_FAINT, labelsize=9, length=3)
        axes.tick_params(axis="x", labelbottom=axes is rows[-1])
        for spine in axes.spines.values():
            spine.set_color(_GRID)
    rows[-1].set_xlabel("seconds" if _in_seconds(entries) else "frame", color=_FAINT, fontsize=10)
    figure.text(0.095, 0.945, title or "Time line", color=_TEXT, fontsize=15, weight="bold")
    figure.text(0.095, 0.905, _summary(trace), color=_FAINT, fontsize=10)
    figure.text(0.095, 0.872, _reasons(trace), color=_FAINT, fontsize=9.5)
    with replace_atomically(path) as partial:
        figure.savefig(partial, facecolor=_BACKGROUND, format=Path(path).suffix[1:] or "png")


def _in_seconds(entries: Sequence[TraceEntry]) -> bool:
    times = [entry.time for entry in entries]
    return len(times) > 1 and all(b > a for a, b in pairwise(times))


def _edges(entries: Sequence[TraceEntry]) -> Any:
    """Left edge of every frame and the right edge of the last, [N + 1]."""
    left = np.array([entry.time if _in_seconds(entries) else entry.index for entry in entries], dtype=float)
    if not _in_seconds(entries):
        left = np.arange(len(entries), dtype=float)
    last = (left[-1] - left[0]) / (len(left) - 1) if len(left) > 1 else 1.0
    return np.append(left, left[-1] + last)


def _band(axes: Axes, edges: Any, chosen: Sequence[bool], row: float, color: str, height: float = 0.8) -> None:
    """Fill the frames that are chosen, runs of them at once; none becomes too thin to be seen."""
    mask = np.array([False, *chosen, False])
    starts, stops = np.flatnonzero(~mask[:-1] & mask[1:]), np.flatnonzero(mask[:-1] & ~mask[1:])
    least = (edges[-1] - edges[0]) / 1200
    spans = [(edges[a], max(edges[b] - edges[a], least)) for a, b in zip(starts, stops)]
    axes.broken_barh(spans, (row - height / 2, height), facecolors=color, linewidth=0)


def _answers(axes: Axes, entries: Sequence[TraceEntry], edges: Any, labels: Sequence[str] | None) -> None:
    answers = [entry.answer for entry in entries]
    known = list(dict.fromkeys(answer for answer in answers if answer is not None))
    start = 0
    for i in range(1, len(answers) + 1):
        if i < len(answers) and answers[i] == answers[start]:
            continue
        answer = answers[start]
        if answer is not None:
            color = _ANSWERS[known.index(answer) % len(_ANSWERS)]
            axes.broken_barh([(edges[start], edges[i] - edges[start])], (0, 1), facecolors=color, linewidth=0)
            name = labels[answer] if labels is not None and answer < len(labels) else str(answer)
            share = (edges[i] - edges[start]) / (edges[-1] - edges[0])
            if share > 0.0085 * len(name) + 0.008:
                axes.text(
                    (edges[start] + edges[i]) / 2, 0.48, name, color="white", ha="center", va="center", fontsize=9.5
                )
        start = i
    axes.set_ylim(0, 1)
    axes.set_yticks([0.5], ["answer"], color=_TEXT, fontsize=10)


def _signal(axes: Axes, entries: Sequence[TraceEntry], edges: Any) -> None:
    middle = (edges[:-1] + edges[1:]) / 2
    values = np.array([np.nan if entry.signal is None else entry.signal for entry in entries], dtype=float)
    axes.set_ylabel("signal", color=_TEXT, fontsize=10)
    if np.isfinite(values).any():
        known = np.isfinite(values)
        axes.plot(middle[known], values[known], color=_SIGNAL, linewidth=1.0, alpha=0.9)
        computed = np.array([entry.action == COMPUTE for entry in entries])
        axes.plot(middle[computed], values[computed], ".", color=_COMPUTED, markersize=5)
        axes.set_ylim(0, float(np.nanmax(values)) * 1.12 or 1.0)
    else:
        axes.set_yticks([])
        axes.text(
            0.5, 0.5, "this policy measures nothing", color=_FAINT, ha="center", va="center", transform=axes.transAxes
        )
    for entry, x in zip(entries, edges):
        if entry.reset:
            axes.axvline(x, color=_RESET, linewidth=1.3)
    axes.grid(axis="y", color=_GRID, linewidth=0.5, alpha=0.6)


def _tiers(axes: Axes, entries: Sequence[TraceEntry], edges: Any) -> None:
    _band(axes, edges, [entry.action == COMPUTE for entry in entries], 2, _COMPUTED)
    _band(axes, edges, [entry.converted for entry in entries], 1, _CONVERTED)
    _band(axes, edges, [entry.decoded for entry in entries], 0, _DECODED)
    counts = (
        sum(entry.decoded for entry in entries),
        sum(entry.converted for entry in entries),
        sum(entry.action == COMPUTE for entry in entries),
    )
    names = ("decoded", "to RGB", "computed")
    for row in range(1, 3):
        axes.axhline(row - 0.5, color=_GRID, linewidth=0.6)
    axes.set_ylim(-0.5, 2.5)
    axes.set_yticks(range(3), [f"{name}\n{n} of {len(entries)}" for name, n in zip(names, counts)], color=_TEXT)


def _packets(axes: Axes, entries: Sequence[TraceEntry], edges: Any) -> None:
    sizes = np.maximum(np.array([entry.packet_size for entry in entries], dtype=float), 1)
    axes.stairs(sizes, edges, fill=True, baseline=1, color=_FAINT, alpha=0.75)
    keys = [i for i, entry in enumerate(entries) if entry.is_keyframe]
    axes.vlines(edges[keys], 1, sizes[keys], color=_KEY, linewidth=1.4)
    axes.plot(edges[keys], sizes[keys], "v", color=_KEY, markersize=5)
    axes.set_yscale("log")
    axes.set_ylim(1, max(10.0, float(sizes.max()) * 3))
    axes.set_ylabel("packet bytes\n(▾ key frames)", color=_TEXT, fontsize=10)


def _summary(trace: Trace) -> str:
    counts, seconds = trace.counts, trace.seconds
    parts = [f"{counts['frames']} frames"]
    parts += [f"{counts[name]} {name}" for name in ("decoded", "computed")]
    if counts["reused"]:
        parts.append(f"answers carried on for at most {trace.worst_staleness} frames")
    total = sum(seconds.values())
    if total:
        stages = ", ".join(f"{name} {value / total:.0%}" for name, value in seconds.items())
        parts.append(f"{total:.2f} s of CPU ({stages})")
    return "  ·  ".join(parts)


def _reasons(trace: Trace) -> str:
    order = {COMPUTE: 0, REUSE: 1, EXIT: 2}
    reasons = sorted(trace.reasons.items(), key=lambda item: (order[item[0].split(":")[0]], -item[1]))
    shown = [f"{reason} ×{count}" for reason, count in reasons[:6]]
    return "   ".join(shown)
