"""The command `trisparse classify-video`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trisparse.commands.options import Options, check_choice, filled_by_typer
from trisparse.policies import parse_policy

if TYPE_CHECKING:
    from video.skip import Policy

# Of the ways to choose frames, those that give the same frames each time.
CLIPS = ("uniform", "twice", "dense")


@dataclass(frozen=True, kw_only=True)
class VideoOptions(Options):
    """Which frames of videos are computed and how, and what is written."""

    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSONL to write: a line for each video, or with --live for each frame."),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="A name that `trisparse models` lists, a weights file, or a published checkpoint; by default "
            "EfficientNet-Lite0 (ImageNet) where trisparse[clips] is installed.",
            show_default=False,
        ),
    ] = None
    picture: Annotated[
        Path | None,
        typer.Option(help="PNG of what was computed, skipped and decoded in each frame; a folder for several videos."),
    ] = None
    timeline: Annotated[Path | None, typer.Option(hidden=True, help="The former name of --picture.")] = None
    labels: Annotated[Path | None, typer.Option(help="Text file that names the classes, one a line.")] = None
    live: Annotated[bool, typer.Option("--live", help="Answer every frame as it comes.")] = False
    policy: Annotated[
        str | None,
        typer.Option(
            help="Which frames to compute: every:N keyframes packets:BYTES luma[:LEVELS] motion:PIXELS gate:FILE, or "
            "exit[:PROBABILITY], which stops looking at a video once the answer is sure."
        ),
    ] = None
    max_staleness: Annotated[int | None, typer.Option(min=0, help="Most frames in a row that a policy may skip.")] = (
        None
    )
    scene_cut: Annotated[
        float | None, typer.Option(min=0, help="Change of mean brightness (0 to 255) that begins a new scene.")
    ] = None
    delta: Annotated[
        float | None,
        typer.Option(min=0, help="Recompute only pixels that changed by more than this; frame by frame."),
    ] = None
    clips: Annotated[str, typer.Option(help="Frames of a whole video: uniform, twice or dense.")] = "uniform"
    crops: Annotated[int, typer.Option(help="Crops of a whole video's frames: 1, 3, 5 or 10.")] = 1
    top: Annotated[int, typer.Option(min=1, help="Classes for each answer.")] = 5

    def __post_init__(self) -> None:
        if self.timeline is not None:
            if self.picture is not None:
                raise ValueError("--timeline is the former name of --picture: leave it out")
            object.__setattr__(self, "picture", self.timeline)
        super().__post_init__()
        from video.preprocess import CROPS

        check_choice("--clips", self.clips, CLIPS)
        if self.crops not in CROPS:
            raise ValueError(f"--crops must be one of {', '.join(map(str, CROPS))}, got {self.crops}")
        if self.policy is None and (self.max_staleness is not None or self.scene_cut is not None):
            raise ValueError("--max-staleness and --scene-cut limit a policy: add --policy")
        if self.exits and self.live:
            raise ValueError("--policy exit answers for whole videos, --live for every frame: leave one of them out")
        if self.exits and self.delta is not None:
            raise ValueError(
                "--delta follows the frames in order, --policy exit jumps between them: leave one of them out"
            )
        if (self.by_frame or self.exits) and self.of_whole_videos:
            raise ValueError("--clips and --crops are for answers to whole videos, and here every frame is answered")
        if self.picture is not None and not self.by_frame and not self.exits:
            raise ValueError("--picture shows what was done frame by frame: add --live, --policy or --delta")

    def check_camera(self, place: str) -> None:
        """Raises ValueError for options that need a video with an end; a camera has none."""
        if self.exits:
            raise ValueError(f"{place}: --policy exit answers for whole videos, and a camera has no end")
        if self.of_whole_videos:
            raise ValueError(f"{place}: --clips and --crops are for answers to whole videos, not for a camera")

    @cached_property
    def frame_policy(self) -> Policy | None:
        """The policy that `policy` names."""
        return None if self.policy is None else parse_policy(self.policy, self.max_staleness, self.scene_cut)

    @property
    def exits(self) -> bool:
        """Whether the policy stops looking at a video once the answer is sure."""
        from video.skip import Confidence

        return isinstance(self.frame_policy, Confidence)

    @property
    def by_frame(self) -> bool:
        """Whether frames of a file are answered one by one; an early exit gives one answer for a whole video."""
        return self.live or self.delta is not None or (self.policy is not None and not self.exits)

    @property
    def of_whole_videos(self) -> bool:
        """Whether an option was given that answers for whole videos alone have."""
        return self.clips != "uniform" or self.crops != 1

    @property
    def places(self) -> tuple[Path | None, ...]:
        return (self.output, self.picture)

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on beside the videos and the model, as JSON."""
        named = ("dtype", "live", "policy", "max_staleness", "scene_cut", "delta", "clips", "crops", "top")
        labels = None if self.labels is None else str(self.labels)
        return {**{name.replace("_", "-"): getattr(self, name) for name in named}, "labels": labels}


@filled_by_typer(VideoOptions)
def classify_video(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Videos, folders of them, or one camera: a device (/dev/video0), an address, - for a pipe."
        ),
    ],
    options: VideoOptions,
) -> int:
    """Name what happens in videos.

    A run that was stopped continues where it stopped when the same command is given again.

    Exit code 0 where all videos were answered, 1 where some or all of them failed, 2 for a command that cannot work.
    """
    from trisparse.videos.run import run
    from trisparse.videos.sources import plan

    return run(plan(sources), options)
