"""What the commands share: options, and what becomes of an error."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Optional

import typer

from trisparse import terminal

# typer reads these at run time, on Python 3.10 too, hence Optional and not `| None`.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[str, typer.Option(help="A name that `trisparse models` lists, or a weights file.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16, or auto: bf16 where the CPU computes it faster.")]
Threads = Annotated[Optional[int], typer.Option(min=1, help="Threads; all cores by default.")]  # noqa: UP045
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """One line on stderr and exit code 2 for what a user can put right."""
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError) as error:
        report(error, debug)
        raise typer.Exit(2) from None


def report(error: Exception, debug: bool) -> None:
    """One line on stderr, after the traceback where that was asked for."""
    if debug:
        traceback.print_exception(error)
    print(f"trisparse: error: {terminal.one_line(error)}", file=sys.stderr, flush=True)


def set_threads(threads: int | None) -> None:
    """Let torch use so many threads; None leaves its choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
