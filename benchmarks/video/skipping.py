"""Clips answered frame by frame, decoding included: every frame computed, or those that a policy asks for.

All sides have the same reader, conversion, preprocessing and network. The policy and its threshold come from the
network's own answers, before the clock starts: on the whole clip those of the clip itself, on its second half those of
the first, which tells what they are worth on footage that they have not seen. The error is the share of frames whose
best class is not that of the dense run, which may be 1 %. Where no policy gains anything every frame is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.competitors import OURS
from benchmarks.data import Unavailable, data_file
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.video.clips import Clip

if TYPE_CHECKING:
    from video.reader import Frame, PacketTable, VideoReader
    from video.skip import Observation, Policy

DENSE = "every frame"
MAX_FLIPS = 0.01
PROXYLESS = "video/proxyless-w0.3-r176_imagenet.pth"
NETWORKS = {"EfficientNet-Lite0 (ImageNet)": "efficientnet_lite0", "ProxylessNAS w0.3 (ImageNet)": "proxylessnas"}
WHOLE, HALF = "whole clip, calibrated on itself", "second half, calibrated on the first"


def trials(clip: Clip, settings: Settings) -> Iterator[Trial]:
    """Two trials for each network; on one thread, in fp32."""
    for shape, name in NETWORKS.items():
        try:
            model, prepare = network(name)
        except Unavailable:
            continue
        for part in (WHOLE, HALF):
            yield _trial(clip, f"{shape}, {part}", part == HALF, model, prepare)


def _trial(clip: Clip, shape: str, half: bool, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> Trial:
    path = str(clip.path)
    right = functools.cache(lambda: dense(path, half, model, prepare))

    def changed(answers: Sequence[int]) -> list[Tensor]:
        differ = sum(a != b for a, b in zip(answers, right()))
        return [torch.tensor([differ / max(1, len(answers)) if len(answers) == len(right()) else 1.0])]

    return Trial(
        case="skipping",
        workload=clip.name,
        shape=shape,
        reference=lambda: [torch.zeros(1)],
        competitors=[
            Competitor(DENSE, "fp32", 1, lambda: functools.partial(dense, path, half, model, prepare), changed),
            Competitor(OURS, "fp32", 1, functools.partial(_ours, path, half, model, prepare), changed, MAX_FLIPS),
        ],
    )


def network(name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network in evaluation mode, channels-last, and its preprocessing; Unavailable without its ImageNet weights.

    Those that are not in NETWORKS have random weights.
    """
    from video.models import create
    from video.preprocess import Preprocess
    from video.pretrained import imagenet_weights, load_pretrained

    if name not in NETWORKS.values():
        torch.manual_seed(0)
        return channels_last(create(name, num_classes=400).eval()), Preprocess()
    path = data_file(PROXYLESS) if name == "proxylessnas" else imagenet_weights()
    if path is None:
        raise Unavailable(f"no weights of {name}")
    model = load_pretrained(path)
    card: Any = model.card
    prepare = Preprocess(card.size, round(card.size * 256 / 224), card.mean, card.std)
    return channels_last(model), prepare


def channels_last(model: nn.Module) -> nn.Module:
    """The network with channels-last weights, the layout that `Preprocess` gives."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


class SecondHalf:
    """The second half of a file as a source of its own, for policies that see decoded frames."""

    def __init__(self, reader: VideoReader) -> None:
        self._reader = reader
        self._start = len(reader) // 2

    def __len__(self) -> int:
        return len(self._reader) - self._start

    @property
    def keyframes(self) -> list[int]:
        return [index - self._start for index in self._reader.keyframes if index >= self._start]

    @property
    def packets(self) -> PacketTable:
        table = self._reader.packets
        return type(table)(*(column[self._start :] for column in table))

    def frames(self, motion_vectors: bool = False, skip: str = "none") -> Iterator[Frame]:
        start = self._start
        if skip != "none":  # the first is always given: without it the frames up to the next would have no answer
            for frame in self._reader.frames(start, start + 1, motion_vectors=motion_vectors):
                frame.index -= self._start
                yield frame
            start += 1
        for frame in self._reader.frames(start, motion_vectors=motion_vectors, skip=skip):
            frame.index -= self._start
            yield frame

    def decode(self, indices: Iterable[int]) -> Iterator[Frame]:
        for frame in self._reader.decode([index + self._start for index in indices]):
            frame.index -= self._start
            yield frame


def dense(path: str, half: bool, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> list[int]:
    """The best class of every frame, each of them decoded, converted, preprocessed and computed."""
    from video.reader import VideoReader

    with VideoReader(path) as reader, torch.no_grad():
        frames = reader.frames(len(reader) // 2 if half else 0)
        return [int(model(prepare(frame.rgb()[None]).flatten(0, 1)).argmax()) for frame in frames]


def _ours(path: str, half: bool, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> Callable[[], list[int]]:
    from video.reader import VideoReader
    from video.skip import run

    seen = _observation(path, model, prepare)
    policy, skip = best_policy(seen.part(0, len(seen) // 2), careful=True) if half else best_policy(seen)

    def call() -> list[int]:
        with VideoReader(path) as reader:
            source = SecondHalf(reader) if half else reader
            return [result.entry.answer or 0 for result in run(source, model, policy, prepare, skip=skip)]

    return call


@functools.lru_cache(maxsize=1)
def _observation(path: str, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> Observation:
    from video.reader import VideoReader
    from video.skip import observe

    with VideoReader(path) as reader:
        return observe(model, reader, prepare, skip="nonref")


def best_policy(seen: Observation, careful: bool = False) -> tuple[Policy, str]:
    """The policy that computes least within MAX_FLIPS, and what the decoder may leave out for it.

    Those that hold on held-out frames too go first. For other footage (careful) only they count, and none that was
    trained on the frames that calibrate it. Where nothing gains, every frame is computed.
    """
    from video.skip import EveryNth, LearnedGate, LumaDifference
    from video.skip.calibration import search
    from video.skip.gate import train

    found = []
    for skip, one in (("nonref", seen), ("none", replace(seen, decoded=[True] * len(seen)))):
        policies: list[Policy] = [LumaDifference(), LumaDifference(relative=True)]
        try:
            if not careful:
                policies.append(LearnedGate(train([one])))
        except ValueError:  # the answer never changes: the others will do
            pass
        for policy in policies:
            report = search(policy, [one], max_drop=MAX_FLIPS)
            if report.gains and (report.ok or not careful):
                found.append((report, skip))
    if not found:
        return EveryNth(1), "none"
    report, skip = min(found, key=lambda one: (not one[0].ok, one[0].fitted.computed))
    return report.policy, skip
