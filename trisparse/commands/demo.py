"""The command `trisparse demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trisparse.commands.options import Debug, Model, errors
from trisparse.commands.segment import DEFAULT_MODEL


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("demo"),
    model: Model = DEFAULT_MODEL,
    compare: Annotated[bool, typer.Option(help="Time spconv and ours side by side.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Only one sweep, one clip and fewer texts: a minute.")] = False,
    debug: Debug = False,
) -> None:
    """Label sweeps, answer clips, embed texts, each beside what others do, and write a page with pictures.

    Real sweeps and texts are looked for in $TRISPARSE_DATA, else in ../shared/data beside the checkout.
    """
    with errors(debug):
        from trisparse.demo import run

        page = run(output, model, compare, quick)
        print(f"\nopen {page}")
