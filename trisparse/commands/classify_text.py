"""The command `trisparse classify-text`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trisparse.commands.options import filled_by_typer
from trisparse.commands.text_options import Files, TextOptions, tell


@dataclass(frozen=True, kw_only=True)
class ClassifyTextOptions(TextOptions):
    """How texts are labelled."""

    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=".jsonl, .csv or .parquet to write; without it JSON lines are printed."),
    ] = None
    model: Annotated[
        str,
        typer.Option(help="A folder with a Hugging Face classifier, the file of a head on embeddings, or a name."),
    ]
    top: Annotated[int, typer.Option(min=1, help="Labels for each document.")] = 5


@filled_by_typer(ClassifyTextOptions)
def classify_text(files: Files, options: ClassifyTextOptions) -> int:
    """Label texts: each line, record or row of the files is a document.

    A run that was stopped continues where it stopped when the same command is given again.

    Exit code 0 where all files were labelled, 1 where some or all of them failed, 2 for a command that cannot work.
    """
    from trisparse.texts import sources
    from trisparse.texts.classify import classify

    found = sources.plan(files, options.format, options.output)
    return tell(classify(found, options), found, options.output)
