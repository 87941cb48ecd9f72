"""Numbers and tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], header: Sequence[str], left: int = 1, indent: str = "  ") -> str:
    """Aligned columns under a header; the first `left` columns flush left, the others right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def write(line: Sequence[str]) -> str:
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        return (indent + "  ".join(cells)).rstrip()

    return "\n".join([write(lines[0]), write(["-" * w for w in widths]), *map(write, lines[1:])])


def seconds(value: float) -> str:
    """Seconds as `1.2 s`, or `34.5 ms` below one second."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks; its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
