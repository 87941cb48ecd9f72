"""The commands `trisparse embed` and `trisparse classify-text`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from trisparse.commands.options import Debug, Dtype, Overwrite, Threads, errors, set_threads

if TYPE_CHECKING:
    from trisparse.texts.reading import Reading
    from trisparse.texts.run import Summary
    from trisparse.texts.sources import Source

DEFAULT_MODEL = "all-minilm-l6-v2"
# Failed files that the last message names.
LONGEST_LIST = 5

Files = Annotated[
    list[str],
    typer.Argument(
        help="Text files (.txt, .csv, .tsv, .jsonl, .ndjson, all of them also .gz, or .parquet), folders of them, or - "
        "for a pipe."
    ),
]
Column = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Column or field that holds the text, text by default; its number, from 0, with --no-header.",
        show_default=False,
    ),
]
IdColumn = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Column or field to copy to the output as text, under the name id."),
]
Format = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Format, where the suffix does not tell: txt csv tsv jsonl parquet; of a pipe txt by default."),
]
WholeFile = Annotated[bool, typer.Option("--whole-file", help="Each txt file is one document, not each line.")]
NoHeader = Annotated[
    bool, typer.Option("--no-header", help="The first line of csv and tsv names no columns: --column is a number.")
]
NoQuotes = Annotated[bool, typer.Option("--no-quotes", help="Quotation marks in csv and tsv mean nothing.")]
Invalid = Annotated[str, typer.Option(help="Text that is not UTF-8: error, replace (U+FFFD), or skip the document.")]
Nulls = Annotated[str, typer.Option(help="A text that is null: error, skip, or empty (taken as the empty text).")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip and count lines that do not parse or lack the column.")]
MaxLength = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Tokens of the longest input; by default what the model reads."),
]
Overflow = Annotated[
    str, typer.Option(help="Longer texts: truncate (and count), split into pieces that are averaged, or error.")
]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens that are computed at a time.")]
Prune = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Remove unimportant tokens of long texts from layer to layer, for speed: cascade[:KEEP] merge[:KEEP] (the "
        "share that is left at the end), mass[:SHARE] (of the attention), threshold[:THETA] (times its mean)."
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch --model from the Hugging Face hub by its name.")]


def add_commands(app: typer.Typer) -> None:
    """Make the commands known."""
    app.command()(embed)
    app.command()(classify_text)


def embed(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write, a row for each document.")],
    model: Annotated[
        str, typer.Option(help="A name that `trisparse models` lists, or a folder with a Hugging Face model.")
    ] = DEFAULT_MODEL,
    column: Column = None,
    id_column: IdColumn = None,
    format: Format = None,
    whole_file: WholeFile = False,
    no_header: NoHeader = False,
    no_quotes: NoQuotes = False,
    invalid: Invalid = "error",
    nulls: Nulls = "error",
    skip_bad: SkipBad = False,
    max_length: MaxLength = None,
    overflow: Overflow = "truncate",
    prune: Prune = None,
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = 8192,
    threads: Threads = None,
    download: Download = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Turn texts into vectors: each line, record or row of the files is a document.

    A stopped run goes on where it stopped when it is started again. Exit code 0, or 2 for an error, or 1 where some of
    several files failed and the others were done.
    """
    with errors(debug):
        from trisparse.texts import embed as embedding
        from trisparse.texts import sources

        set_threads(threads)
        found = sources.plan(files, format, output)
        reading = _reading(found, column, id_column, whole_file, invalid, nulls, skip_bad, no_header, no_quotes)
        summary = embedding.embed(
            found, reading, output, model, dtype, max_length, overflow, batch_tokens, overwrite, prune,
            download,
        )  # fmt: skip
    _report(summary, found, output)


def classify_text(
    files: Files,
    model: Annotated[
        str,
        typer.Option(help="A folder with a Hugging Face classifier, the file of a head on embeddings, or a name."),
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help=".jsonl, .csv or .parquet to write; without it JSON lines are printed."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels for each document.")] = 5,
    column: Column = None,
    id_column: IdColumn = None,
    format: Format = None,
    whole_file: WholeFile = False,
    no_header: NoHeader = False,
    no_quotes: NoQuotes = False,
    invalid: Invalid = "error",
    nulls: Nulls = "error",
    skip_bad: SkipBad = False,
    max_length: MaxLength = None,
    overflow: Overflow = "truncate",
    prune: Prune = None,
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = 8192,
    threads: Threads = None,
    download: Download = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Label texts: each line, record or row of the files is a document.

    A stopped run goes on where it stopped when it is started again. Exit code 0, or 2 for an error, or 1 where some of
    several files failed and the others were done.
    """
    with errors(debug):
        from trisparse.texts import classify as labelling
        from trisparse.texts import sources

        if overwrite and output is None:
            raise ValueError("--overwrite replaces a file: add --output")
        set_threads(threads)
        found = sources.plan(files, format, output)
        reading = _reading(found, column, id_column, whole_file, invalid, nulls, skip_bad, no_header, no_quotes)
        summary = labelling.classify(
            found, reading, output, model, top, dtype, max_length, overflow, batch_tokens, overwrite, prune,
            download,
        )  # fmt: skip
    _report(summary, found, output)


def _reading(
    sources: Sequence[Source],
    column: str | None,
    id_column: str | None,
    whole_file: bool,
    invalid: str,
    nulls: str,
    skip_bad: bool,
    no_header: bool,
    no_quotes: bool,
) -> Reading:
    """How to read.

    Raises:
        ValueError: an option that would have no effect on these files.
    """
    from trisparse.texts.reading import Reading

    formats = {source.format for source in sources}
    for option, given in {"--column": column, "--id-column": id_column}.items():
        if given is not None and formats == {"txt"}:
            raise ValueError(f"{option} {given}: a txt file has no columns; --format tells what a file is")
    if id_column is not None and "txt" in formats:
        raise ValueError(f"--id-column {id_column}: a txt file has no columns, and one is among the files")
    other = next((source.name for source in sources if source.format != "txt"), None)
    if whole_file and other is not None:
        raise ValueError(f"--whole-file is for txt files, {other} is none")
    for option, wanted in {"--no-header": no_header, "--no-quotes": no_quotes}.items():
        if wanted and not formats & {"csv", "tsv"}:
            raise ValueError(f"{option} is for csv and tsv files, there is none")
    if no_header and column is None:
        raise ValueError("--no-header: give the number of the text's column, from 0, with --column")
    if column is None:
        column = "text"
    return Reading(column, id_column, whole_file, invalid, nulls, skip_bad, not no_quotes, not no_header)


def _report(summary: Summary, sources: Sequence[Source], output: Path | None) -> None:
    """The last lines; raises typer.Exit where files failed."""
    failed, n = summary.failed, len(sources)
    # What is printed without an output is for another program to read.
    stream = sys.stderr if output is None else sys.stdout
    if len(failed) < n or output is None:
        print(summary.line(), file=stream)
    if len(failed) < n and output is not None:
        print(f"wrote {output}")
    if not failed:
        return
    if n > 1:
        names = ", ".join(sources[i].name for i in list(failed)[:LONGEST_LIST])
        more = ", ..." if len(failed) > LONGEST_LIST else ""
        kept = ", what came before their faults is in the output" if len(failed) < n else ""
        print(f"trisparse: {len(failed)} of {n} files failed{kept}: {names}{more}", file=sys.stderr)
    if len(failed) == n and output is not None and summary.counts["rows"]:
        print(
            f"trisparse: {output} was not written; the {summary.counts['rows']:,} rows before the error are kept, and "
            "the same command goes on after them once the file is put right",
            file=sys.stderr,
        )
    raise typer.Exit(1 if len(failed) < n else 2)
