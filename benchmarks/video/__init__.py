"""The video benchmark: decoding, temporal shift, frame skipping, recomputation of changed pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Settings, Trial
from benchmarks.video import clips, conv_update, delta, motion, networks, reader, shift, skipping, small


@dataclass(frozen=True)
class Shapes:
    """The workload of cases whose input is made up: layers of the shapes that networks have."""

    name: str = "layer shapes"
    summary: str = "no clip"


CASES: dict[str, Callable[[Any, Settings], Iterator[Trial]]] = {
    "shift": shift.trials,
    "conv_update": conv_update.trials,
    "networks": networks.trials,
    "small": small.trials,
    "motion": motion.trials,
    "reader": reader.trials,
    "skipping": skipping.trials,
    "delta": delta.trials,
}
WORKLOADS: dict[str, Callable[[], Any]] = {"shapes": Shapes, "digits": motion.load, **clips.CLIPS}
QUICK: Sequence[str] = ("shapes", "carphone_pristine.mp4")
# Still and moving cameras.
_FILMED = ("a.mp4", "world.mp4", "bikes.mp4", "carphone_pristine.mp4")
ONLY: Mapping[str, Sequence[str]] = {
    "shift": ("shapes",),
    "conv_update": ("shapes",),
    "networks": ("shapes",),
    "small": ("shapes",),
    "motion": ("digits",),
    "reader": tuple(clips.CLIPS),
    "skipping": (*_FILMED, "b.mp4", "muted_b.mp4"),
    "delta": _FILMED,
}
