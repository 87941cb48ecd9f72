"""The command `trisparse`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from trisparse import terminal
from trisparse.commands import texts as language_commands
from trisparse.commands.options import Debug, Dtype, Model, Overwrite, Threads, errors, report, set_threads
from trisparse.version import __version__

# Heavy imports stand inside of the commands: `trisparse --help` must not wait for torch.
app = typer.Typer(
    help="Point-cloud, video and language models made fast by not computing what carries no information.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DEFAULT_MODEL = "minkunet14-streets"


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


@app.command()
def segment(
    files: Annotated[
        list[Path],
        typer.Argument(help="A cloud (.bin .pcd .ply .las .laz .npy .npz .txt .xyz .csv .pts), several, or a folder."),
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="PLY to write; a folder for several clouds."),
    ] = None,
    picture: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PNG to write (bird's eye and range view); a folder for several clouds."),
    ] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    threads: Threads = None,
    format: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Format, where the suffix does not tell: kitti nuscenes bin pcd ply las npy npz text."),
    ] = None,
    columns: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help='Columns of a file that does not name them, as in "x y z intensity _" (_ skips one).'),
    ] = None,
    invalid: Annotated[str, typer.Option(help="Points that are not finite: error, or drop them.")] = "error",
    debug: Debug = False,
) -> None:
    """Label every point of LiDAR sweeps: sensor at the origin, z up, metres.

    Exit code 0, or 2 for an error, or 1 where some of several clouds failed and the others were done.
    """
    with errors(debug):
        from trisparse import clouds

        set_threads(threads)
        jobs = clouds.plan(files, output, picture)
        reading = clouds.Reading(format, columns, invalid)
        if len(jobs) == 1 and jobs[0].source in files:
            # First the file: an error in its name should not wait for the network.
            cloud, seconds = clouds.read(jobs[0], reading)
            segmenter = clouds.load_segmenter(model, dtype)
            result = clouds.label(cloud, seconds, segmenter, jobs[0])
            print(f"{jobs[0].source}\n{clouds.describe(result, segmenter)}")
            for target in filter(None, (jobs[0].output, jobs[0].picture)):
                print(f"wrote {target}")
            return
        segmenter = clouds.load_segmenter(model, dtype)
        clouds.make_folders(jobs)
    failed = 0
    for i, job in enumerate(jobs):
        try:
            result = clouds.label(*clouds.read(job, reading), segmenter, job)
        except (ValueError, OSError) as error:
            failed += 1
            report(error, debug)
            continue
        total = terminal.seconds(sum(result.seconds.values()))
        found = ", ".join(f"{name} {n:,}" for name, n in result.segmentation.counts().items())
        print(f"{i + 1}/{len(jobs)} {job.source.name}: {len(result.cloud):,} points, {total}: {found}", flush=True)
    if failed:
        print(f"trisparse: {failed} of {len(jobs)} clouds failed", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def classify_video(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Videos, folders of them, or one camera: a device (/dev/video0), an address, - for a pipe."
        ),
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="JSONL to write: a line for each video, or with --live for each frame."),
    ] = None,
    timeline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PNG of what was kept, skipped and decoded; a folder for several videos."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="A name that `trisparse models` lists, a weights file, or a published checkpoint; by default "
            "EfficientNet-Lite0 (ImageNet) where trisparse[clips] is installed.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Text file that names the classes, one a line."),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Answer every frame as it comes.")] = False,
    policy: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Which frames to compute: every:N keyframes packets:BYTES luma[:LEVELS] motion:PIXELS gate:FILE, or "
            "exit[:PROBABILITY], which stops looking at a video once the answer is sure."
        ),
    ] = None,
    max_staleness: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Most frames in a row that a policy may skip."),
    ] = None,
    scene_cut: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Change of mean brightness (0 to 255) that begins a new scene."),
    ] = None,
    delta: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Recompute only pixels that changed by more than this; frame by frame."),
    ] = None,
    clips: Annotated[str, typer.Option(help="Frames of a whole video: uniform, twice or dense.")] = "uniform",
    crops: Annotated[int, typer.Option(help="Crops of a whole video's frames: 1, 3, 5 or 10.")] = 1,
    top: Annotated[int, typer.Option(min=1, help="Classes for each answer.")] = 5,
    dtype: Dtype = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Name what happens in videos.

    A stopped run goes on where it stopped when it is started again. Exit code 0, or 2 for an error, or 1 where some of
    several videos failed and the others were done.
    """
    with errors(debug):
        from trisparse.videos import classify as classifying
        from trisparse.videos import run as videos

        set_threads(threads)
        found = classifying.plan(sources)
        wanted = videos.wanted(live, policy, max_staleness, scene_cut, delta, clips, crops, top, found)
        failed = videos.run(found, model, dtype, delta, wanted, output, timeline, overwrite, labels)
    if failed:
        print(f"trisparse: {failed} of {len(found)} videos failed", file=sys.stderr)
        raise typer.Exit(1 if len(found) > failed or len(found) > 1 else 2)


@app.command()
def models(debug: Debug = False) -> None:
    """List the pretrained networks with what they are for and how well they do it."""
    with errors(debug):
        from trisparse import zoo

        names = zoo.list_pretrained()
        if not names:
            print("no pretrained networks are installed")
        for name in names:
            card = zoo.load_pretrained(name).card
            size = zoo.weights_file(name).stat().st_size / 1e6
            print(f"{name}  ({size:.2f} MB)\n  {card.description}")
            arguments = ", ".join(f"{key}={value}" for key, value in getattr(card, "arguments", {}).items())
            print(f"  network   {card.architecture}" + (f"({arguments})" if arguments else ""))
            if hasattr(card, "class_names"):
                print(f"  classes   {', '.join(card.class_names)}")
            if hasattr(card, "max_tokens"):
                limit = "" if card.max_tokens is None else f", texts of up to {card.max_tokens} tokens"
                print(f"  output    {card.dimensions} numbers{limit}")
            if hasattr(card, "voxel_size"):
                print(f"  voxels    {card.voxel_size:g} m")
            if hasattr(card, "num_segments"):
                clip = f", clips of {card.num_segments}" if card.num_segments > 1 else ""
                print(f"  frames    {card.size} x {card.size}{clip}")
            if "accuracy" in card.results:
                found = card.results["accuracy"]
                found = found if isinstance(found, dict) else {"": found}  # of several networks
                print(
                    f"  held out  accuracy {', '.join(f'{name} {value:.3f}'.strip() for name, value in found.items())}"
                )
            if "mean_iou" in card.results:
                sweeps = card.results.get("sweeps", "unknown")
                print(f"  held out  mean IoU {card.results['mean_iou']:.3f}, sweeps: {sweeps}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("demo"),
    model: Model = DEFAULT_MODEL,
    compare: Annotated[bool, typer.Option(help="Time spconv and ours side by side.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Only one sweep, one clip and fewer texts: a minute.")] = False,
    debug: Debug = False,
) -> None:
    """Label sweeps, answer clips, embed texts, each beside what others do, and write a page with pictures.

    Real sweeps and texts are looked for in $TRISPARSE_DATA, else in ../shared/data.
    """
    with errors(debug):
        from trisparse.demo import run

        page = run(output, model, compare, quick)
        print(f"\nopen {page}")


@app.command()
def doctor(debug: Debug = False) -> None:
    """Say what this machine has, and whether the kernels compile and agree with their references.

    Exit code 1 where a check fails.
    """
    with errors(debug):
        from trisparse.doctor import examine

        healthy = examine()
    if not healthy:
        raise typer.Exit(1)


def sleep_while_waiting() -> None:
    """Let torch's OpenMP threads sleep between their loops, unless the user chose otherwise.

    By default they spin for milliseconds after each loop, on the cores that our own threads want: a network of many
    small layers runs several times slower. OpenMP reads the variable when torch is loaded.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


language_commands.add_commands(app)
