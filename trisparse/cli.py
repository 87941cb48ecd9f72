"""The command `trisparse`: what it is made of. Each of its commands has a file in `trisparse.commands`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from trisparse.commands.classify_text import classify_text
from trisparse.commands.classify_video import classify_video
from trisparse.commands.convert import convert
from trisparse.commands.demo import demo
from trisparse.commands.doctor import doctor
from trisparse.commands.embed import embed
from trisparse.commands.models import models
from trisparse.commands.segment import segment
from trisparse.version import __version__

# Heavy imports stand inside of the commands: `trisparse --help` must not wait for torch.
app = typer.Typer(
    help="Point-cloud, video and language models made fast by not computing what carries no information.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"trisparse {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Point-cloud, video and language models made fast by not computing what carries no information."""
    sleep_while_waiting()


for command in (segment, classify_video, embed, classify_text, convert, models, demo, doctor):
    app.command()(command)


def sleep_while_waiting() -> None:
    """Let torch's OpenMP threads sleep between their loops, unless the user chose otherwise.

    By default they spin for milliseconds after each loop, on the cores that our own threads want: a network of many
    small layers runs several times slower. OpenMP reads the variable when torch is loaded.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
