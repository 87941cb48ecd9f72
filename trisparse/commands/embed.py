"""The command `trisparse embed`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trisparse.commands.options import filled_by_typer
from trisparse.commands.text_options import Files, TextOptions, tell

DEFAULT_MODEL = "all-minilm-l6-v2"


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(TextOptions):
    """How texts are embedded."""

    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write, a row for each document.")]
    model: Annotated[
        str, typer.Option(help="A name that `trisparse models` lists, or a folder with a Hugging Face model.")
    ] = DEFAULT_MODEL


@filled_by_typer(EmbedOptions)
def embed(files: Files, options: EmbedOptions) -> int:
    """Turn texts into vectors: each line, record or row of the files is a document.

    A run that was stopped continues where it stopped when the same command is given again.

    Exit code 0 where all files were embedded, 1 where some or all of them failed, 2 for a command that cannot work.
    """
    from trisparse.texts import sources
    from trisparse.texts.embed import embed as run

    found = sources.plan(files, options.format, options.output)
    return tell(run(found, options), found, options.output)
