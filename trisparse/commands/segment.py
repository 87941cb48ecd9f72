"""The command `trisparse segment`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trisparse.commands.options import Model, Options, check_choice, filled_by_typer

DEFAULT_MODEL = "minkunet14-streets"
INVALID = ("error", "drop")
# Spelt out: the help must not wait for torch. A test compares it with what can be read.
KNOWN_FORMATS = "kitti nuscenes waymo sunrgbd bin pcd ply las npy npz text obj off e57 pcap"


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(Options):
    """How clouds are read, labelled and written."""

    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PLY file to write; a folder for several clouds.")
    ] = None
    model: Model = DEFAULT_MODEL
    picture: Annotated[
        Path | None, typer.Option(help="PNG to write (bird's eye and range view); a folder for several clouds.")
    ] = None
    format: Annotated[
        str | None,
        typer.Option(help=f"Format of files whose suffix does not tell: {KNOWN_FORMATS}."),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(help='Columns of files that do not name them, as in "x y z intensity _" (_ skips a column).'),
    ] = None
    values: Annotated[
        str | None,
        typer.Option(help="Numbers of files without a header (.bin): float16 float32 float64 int16 int32."),
    ] = None
    byte_order: Annotated[
        str | None, typer.Option(help="Byte order of files without a header (.bin): little or big.")
    ] = None
    invalid: Annotated[str, typer.Option(help="Points that are not finite: error, or drop them.")] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        from pointcloud.io.columns import parse_columns
        from pointcloud.io.raw import BYTE_ORDERS, DTYPES
        from pointcloud.io.read import FORMATS

        check_choice("--invalid", self.invalid, INVALID)
        if self.format is not None:
            check_choice("--format", self.format, FORMATS)
        if self.values is not None:
            check_choice("--values", self.values, DTYPES)
        if self.byte_order is not None:
            check_choice("--byte-order", self.byte_order, tuple(BYTE_ORDERS))
        try:
            parse_columns(self.columns)
        except ValueError as error:
            raise ValueError(f"--{error}") from None

    @property
    def places(self) -> tuple[Path | None, ...]:
        return (self.output, self.picture)


@filled_by_typer(SegmentOptions)
def segment(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="A cloud (.bin .pcd .ply .las .laz .e57 .pcap .npy .npz .txt .xyz .csv .pts .obj .off; also .gz), "
            "several, or a folder."
        ),
    ],
    options: SegmentOptions,
) -> int:
    """Label every point of LiDAR sweeps: sensor at the origin, z up, metres.

    A cloud that is not like a sweep of a street (a room, another unit, another place of the sensor, no intensity) is
    labelled, with a warning that says why on stderr.

    A run over several clouds that was stopped continues where it stopped when the same command is given again.

    Exit code 0 where all clouds were labelled, 1 where some or all of them failed, 2 for a command that cannot work.
    """
    from trisparse import clouds

    return clouds.run(clouds.plan(files, options), options)
