"""What the commands that read texts share: their options, and the last lines of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trisparse.commands.options import Model, Options, check_choice

if TYPE_CHECKING:
    from trisparse.texts.reading import Reading
    from trisparse.texts.run import Summary
    from trisparse.texts.sources import Source

OVERFLOWS = ("truncate", "split", "error")
# Failed files that the last message names.
LONGEST_LIST = 5

Files = Annotated[
    list[str],
    typer.Argument(
        help="Text files (.txt, .csv, .tsv, .jsonl, .ndjson, all of them also .gz, or .parquet), folders of them, or - "
        "for a pipe."
    ),
]


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options):
    """How texts are read and what the network does with them."""

    model: Model
    column: Annotated[
        str | None,
        typer.Option(
            help="Column or field that holds the text, text by default; its number, from 0, with --no-header.",
            show_default=False,
        ),
    ] = None
    id_column: Annotated[
        str | None, typer.Option(help="Column or field to copy to the output as text, under the name id.")
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            help="Format of files whose suffix does not tell: txt csv tsv jsonl parquet; of a pipe txt by default."
        ),
    ] = None
    whole_file: Annotated[bool, typer.Option("--whole-file", help="Each txt file is one document, not each line.")] = (
        False
    )
    no_header: Annotated[
        bool, typer.Option("--no-header", help="The first line of csv and tsv names no columns: --column is a number.")
    ] = False
    no_quotes: Annotated[
        bool, typer.Option("--no-quotes", help="Quotation marks in csv and tsv are ordinary characters.")
    ] = False
    invalid: Annotated[
        str, typer.Option(help="Text that is not UTF-8: error, replace (U+FFFD), or skip the document.")
    ] = "error"
    nulls: Annotated[
        str, typer.Option(help="A text that is null: error, skip, or empty (taken as the empty text).")
    ] = "error"
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count lines that do not parse or lack the column.")
    ] = False
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest input; by default what the model reads.")
    ] = None
    overflow: Annotated[
        str, typer.Option(help="Longer texts: truncate (and count), split into pieces that are averaged, or error.")
    ] = "truncate"
    prune: Annotated[
        str | None,
        typer.Option(
            help="Remove unimportant tokens of long texts from layer to layer, for speed: cascade[:KEEP] merge[:KEEP] "
            "(the share that is left at the end), mass[:SHARE] (of the attention), threshold[:THETA] (times its mean)."
        ),
    ] = None
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are computed at a time.")] = 8192
    download: Annotated[
        bool, typer.Option("--download", help="Fetch --model from the Hugging Face hub by its name.")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--overflow", self.overflow, OVERFLOWS)

    def reading(self, sources: Sequence[Source]) -> Reading:
        """How these files are to be read.

        Raises:
            ValueError: an option that is not one of its choices, or that would have no effect on these files.
        """
        from trisparse.texts.reading import Reading

        formats = {source.format for source in sources}
        for option, given in {"--column": self.column, "--id-column": self.id_column}.items():
            if given is not None and formats == {"txt"}:
                raise ValueError(f"{option} {given}: a txt file has no columns; --format tells what a file is")
        if self.id_column is not None and "txt" in formats:
            raise ValueError(f"--id-column {self.id_column}: a txt file has no columns, and one is among the files")
        other = next((source for source in sources if source.format != "txt"), None)
        if self.whole_file and other is not None:
            raise ValueError(f"--whole-file is for txt files, but {other.name} is read as {other.format}")
        for option, wanted in {"--no-header": self.no_header, "--no-quotes": self.no_quotes}.items():
            if wanted and not formats & {"csv", "tsv"}:
                raise ValueError(f"{option} is for csv and tsv files, but none is among the files")
        if self.no_header and self.column is None:
            raise ValueError("--no-header: give the number of the text's column, from 0, with --column")
        return Reading(
            column="text" if self.column is None else self.column,
            id_column=self.id_column,
            whole_file=self.whole_file,
            invalid=self.invalid,
            nulls=self.nulls,
            skip_bad=self.skip_bad,
            quotes=not self.no_quotes,
            header=not self.no_header,
        )


def tell(summary: Summary, sources: Sequence[Source], output: Path | None) -> int:
    """Print the last lines of a run; the number of files that failed."""
    from trisparse import terminal

    failed, n, rows = summary.failed, len(sources), summary.counts["rows"]
    # What is printed without an output is for another program to read.
    stream = sys.stderr if output is None else sys.stdout
    if len(failed) < n or output is None:
        print(summary.line(), file=stream)
    if len(failed) < n and output is not None:
        print(f"wrote {output}")
    names = ", ".join(sources[i].name for i in list(failed)[:LONGEST_LIST])
    more = ", ..." if len(failed) > LONGEST_LIST else ""
    kept = ", and the output holds what came before their errors" if len(failed) < n else ""
    terminal.tell_failures(len(failed), n, "files", f"{kept}: {names}{more}")
    if len(failed) == n and output is not None and rows:
        print(
            f"trisparse: {output} was not written. Correct the file, then run the same command again to continue after "
            f"the {rows:,} rows before the error, which are kept.",
            file=sys.stderr,
        )
    return len(failed)
