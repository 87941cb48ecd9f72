"""Whole clips answered frame by frame, decoding included: every frame computed, or those that a policy asks for.

Both sides have the same reader, conversion, preprocessing and network. The policy is calibrated on the clip itself,
from the network's own answers, before the clock starts. Its error is the share of frames whose best class is not that
of the dense run, which may be 1 %. Where no policy gains anything every frame is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.cases.common import OURS
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.video.clips import Clip
from benchmarks.workloads import Unavailable

if TYPE_CHECKING:
    from video.skip import Policy

DENSE = "every frame"
MAX_FLIPS = 0.01
IMAGENET = Path(__file__).resolve().parents[3] / "shared" / "data" / "video" / "proxyless-w0.3-r176_imagenet.pth"
NETWORKS = {
    "ProxylessNAS w0.3 (ImageNet)": "proxylessnas",
    "MobileNetV2 (random weights)": "mobilenet_v2",
    "ResNet-50 (random weights)": "resnet50",
}


def trials(clip: Clip, settings: Settings) -> Iterator[Trial]:
    """One trial for each network; on one thread, in fp32."""
    for shape, name in NETWORKS.items():
        try:
            model, prepare = network(name)
        except Unavailable:
            continue
        yield _trial(clip, shape, model, prepare)


def _trial(clip: Clip, shape: str, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> Trial:
    path = str(clip.path)
    right = functools.cache(lambda: dense(path, model, prepare))

    def changed(answers: Sequence[int]) -> list[Tensor]:
        differ = sum(a != b for a, b in zip(answers, right()))
        return [torch.tensor([differ / max(1, len(answers)) if len(answers) == len(right()) else 1.0])]

    return Trial(
        case="skipping",
        workload=clip.name,
        shape=shape,
        reference=lambda: [torch.zeros(1)],
        competitors=[
            Competitor(DENSE, "fp32", 1, lambda: functools.partial(dense, path, model, prepare), changed),
            Competitor(OURS, "fp32", 1, functools.partial(_ours, path, model, prepare), changed, MAX_FLIPS),
        ],
    )


def network(name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network in evaluation mode, channels-last, and its preprocessing; Unavailable without its weights."""
    from video.models import create
    from video.preprocess import Preprocess
    from video.pretrained import load_pretrained

    if name != "proxylessnas":
        torch.manual_seed(0)
        return channels_last(create(name, num_classes=400).eval()), Preprocess()
    if not IMAGENET.is_file():
        raise Unavailable(f"no {IMAGENET}")
    model = load_pretrained(IMAGENET)
    card: Any = model.card
    prepare = Preprocess(card.size, round(card.size * 256 / 224), card.mean, card.std)
    return channels_last(model), prepare


def channels_last(model: nn.Module) -> nn.Module:
    """The network with channels-last weights, the layout that `Preprocess` gives."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def dense(path: str, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> list[int]:
    """The best class of every frame, each of them decoded, converted, preprocessed and computed."""
    from video.reader import VideoReader

    with VideoReader(path) as reader, torch.no_grad():
        return [int(model(prepare(frame.rgb()[None]).flatten(0, 1)).argmax()) for frame in reader.frames()]


def _ours(path: str, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> Callable[[], list[int]]:
    from video.reader import VideoReader
    from video.skip import run

    policy, skip = best_policy(path, model, prepare)

    def call() -> list[int]:
        with VideoReader(path) as reader:
            return [result.entry.answer or 0 for result in run(reader, model, policy, prepare, skip=skip)]

    return call


def best_policy(path: str, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> tuple[Policy, str]:
    """The policy that computes least within MAX_FLIPS, and what the decoder may leave out for it.

    Leaving out unreferenced frames is preferred: it saves decoding. Where nothing gains, every frame is computed.
    """
    from video.reader import VideoReader
    from video.skip import EveryNth, LearnedGate, LumaDifference, NothingToGainError, observe
    from video.skip.calibration import search
    from video.skip.gate import train

    with VideoReader(path) as reader:
        seen = observe(model, reader, prepare, skip="nonref")
    for skip, one in (("nonref", seen), ("none", replace(seen, decoded=[True] * len(seen)))):
        policies: list[Policy] = [LumaDifference(), LumaDifference(relative=True)]
        try:
            policies.append(LearnedGate(train([one])))
        except ValueError:  # the answer never changes: the others will do
            pass
        found = []
        for policy in policies:
            try:
                found.append(search(policy, [one], MAX_FLIPS))
            except NothingToGainError:
                continue
        if found:
            return min(found, key=lambda pair: pair[1].fitted.computed)[0], skip
    return EveryNth(1), "none"
