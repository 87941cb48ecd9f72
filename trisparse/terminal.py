"""Numbers and tables for a terminal."""

from __future__ import annotations

import sys
import traceback
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


def complain(problem: BaseException | str, kind: str = "error", debug: bool = False) -> None:
    """`trisparse: error: ...` on stderr, above a progress bar where one is shown; with `debug` after the traceback."""
    from tqdm import tqdm

    if debug and isinstance(problem, BaseException):
        tqdm.write("".join(traceback.format_exception(problem)), file=sys.stderr, end="")
    message = problem if isinstance(problem, str) else one_line(problem)
    tqdm.write(f"trisparse: {kind}: {message}", file=sys.stderr)
    sys.stderr.flush()


def tell_failures(failed: int, total: int, what: str, more: str = "") -> None:
    """The last line on stderr of a run over several inputs of which some failed, as `1 of 3 clouds failed`."""
    if failed and total > 1:
        print(f"trisparse: {failed} of {total} {what} failed{more}", file=sys.stderr, flush=True)
