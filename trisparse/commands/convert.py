"""The command `trisparse convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trisparse import terminal
from trisparse.commands.options import Debug, check_choice, errors

# As in pointcloud.checkpoints, which is not loaded for --help.
SOURCES = (
    "spconv", "spconv-2.1", "spconv-2.0", "spconv-1", "mmcv", "torchsparse", "minkowski", "warpconvnet", "fvdb", "ocnn",
)  # fmt: skip
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How a checkpoint is read and written.

    Raises:
        ValueError: an option that is not one of its choices, or an output that is no safetensors file.
    """

    output: Path
    source: str | None = None
    voxel_size: float | None = None
    half: bool = False
    sha256: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.source is not None:
            check_choice("--source", self.source, SOURCES)
        if self.output.suffix != SUFFIX:
            raise ValueError(f"--output must end in {SUFFIX}, got {str(self.output)!r}")
        if self.voxel_size is not None and not 0 < self.voxel_size < float("inf"):
            raise ValueError(f"--voxel-size must be metres above 0, got {self.voxel_size}")


def convert(
    file: Annotated[Path, typer.Argument(help="A checkpoint (.pth .pt .ckpt .tar .safetensors) of another project.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    source: Annotated[
        str | None,
        typer.Option(help=f"The library of its layers, where the file does not tell: {' '.join(SOURCES)}."),
    ] = None,
    voxel_size: Annotated[
        float | None, typer.Option(help="Metres, for the card; by default what the project's networks were trained at.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write matrices in fp16, half the size.")] = False,
    sha256: Annotated[str | None, typer.Option(help="Refuse another file: its digest, 8 digits at least.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    debug: Debug = False,
) -> None:
    """Turn a point-cloud checkpoint of another project into weights for this package, with a card.

    Nothing in the file is executed. Networks that are here (MinkUNet) get this package's names, others keep theirs.

    Exit code 0 where it was converted, 1 where the file cannot be, 2 for a command that cannot work.
    """
    with errors(debug):
        options = ConvertOptions(
            output=output, source=source, voxel_size=voxel_size, half=half, sha256=sha256, overwrite=overwrite
        )
        from trisparse import conversion

        conversion.check_places(file, options)
        try:
            result = conversion.convert(file, options)
            conversion.write(result, options)
        except ValueError as error:
            terminal.complain(error, debug=debug)
            raise typer.Exit(1) from None
        print(conversion.describe(result, options))
