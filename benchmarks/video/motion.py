"""What the temporal shift is for: held-out clips of moving digits, classified with and without it.

The error of a row is the share of clips that are misnamed; a guess misnames four of five. All classes of the task show
the same frames in another order.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.data import Unavailable
from benchmarks.harness import Competitor, Settings, Trial

SEED = 2_000_000  # neither a training's nor its held-out measurement's
_BATCH = 60
# The three networks of `python -m video.training`, and what each may misname; what TSN misnames is the finding.
_NETWORKS = {
    "TSM, past only": ("tsm-motion-digits", 0.05),
    "TSM, past only, live": ("tsm-motion-digits", 0.05),
    "TSM, both directions": ("tsm-motion-digits-both", 0.05),
    "TSN, the same without shift": ("tsm-motion-digits-no-shift", 1.0),
}


@dataclass(frozen=True)
class MovingDigits:
    """Held-out clips: network inputs [N, 8, 3, 48, 48] and classes [N]."""

    clips: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    name: str = "moving digits"

    @property
    def summary(self) -> str:
        """How many clips, and what they show."""
        return f"{len(self.clips)} clips of 8 frames, five motions of held-out handwritten digits"


def load() -> MovingDigits:
    """The clips; Unavailable without scikit-learn, which brings the digits."""
    if importlib.util.find_spec("sklearn") is None:
        raise Unavailable("scikit-learn is not installed: pip install 'trisparse[train]'")
    from video.training import digits, random_clips
    from video.training.train import network_input

    images, _ = digits(held_out=True)
    clips, labels = random_clips(images, SEED)
    return MovingDigits(network_input(clips, clips.shape[2]).unflatten(0, clips.shape[:2]), labels)


def trials(work: MovingDigits, settings: Settings) -> Iterator[Trial]:
    """All clips through each network, in fp32; the settings' dtypes do not apply."""

    def compare(logits: Tensor) -> Sequence[Tensor]:
        return [(logits.argmax(1).cpu() == work.labels).double().mean()]

    competitors = [
        Competitor(
            name, "fp32", threads, functools.partial(_build, name, work, settings.device), compare, _NETWORKS[name][1]
        )
        for threads in settings.threads
        for name in _NETWORKS
    ]
    shape = f"{len(work.clips)} clips, error = share misnamed"
    yield Trial("motion", work.name, shape, lambda: [torch.ones((), dtype=torch.float64)], competitors)


def _build(name: str, work: MovingDigits, device: str) -> Callable[[], Tensor]:
    """A call that returns the logits [N, 5] of all clips."""
    from video.pretrained import load_pretrained
    from video.stream import Stream

    model = load_pretrained(_NETWORKS[name][0]).to(device)
    batches = [batch.to(device) for batch in work.clips.split(_BATCH)]
    if name.endswith("live"):
        stream = Stream(model)

        def live() -> Tensor:
            logits = []
            for batch in batches:
                state, frames = None, []
                for frame in batch.unbind(1):
                    output, state = stream.step(frame, state)
                    frames.append(output)
                logits.append(torch.stack(frames).mean(0))
            return torch.cat(logits)

        return live

    @torch.inference_mode()
    def offline() -> Tensor:
        return torch.cat([model(batch) for batch in batches])

    return offline
