"""A learned gate: a tiny network that foresees from cheap features whether the dense network changes its answer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common_models.files import replace_atomically
from video.skip.observation import Observation, observe
from video.skip.policy import COMPUTE, REUSE, Decision, Policy, PolicyState, check_number, lead
from video.skip.signals import BLOCK, Array, Signals, absolute_difference, block_sums, mean_of

FEATURES = (
    "mean difference", "largest block", "mean of the most changed tenth", "share of changed blocks", "brightness",
    "staleness", "bytes", "key frame", "lead of the last answer",
)  # fmt: skip
_N_LUMA = 5  # the first of them, of how luma differs
_FORMAT = "trisparse.LearnedGate"
_HIDDEN = 16
# Blocks that differ by more than this many levels count as changed.
_CHANGED = 0.5
# Distances between the computed and the present frame that the gate is shown.
_GAPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_MAX_PAIRS = 20_000
# Differences of a still scene are a few thousandths of a level, those of motion tens: the gate sees logarithms.
_LEAST = 2e-3
_LONGEST_LEAD = 100.0


@dataclass(frozen=True, eq=False)
class LearnedGate(Policy):
    """Compute when the gate holds it more likely than `threshold` that the answer has changed.

    `fit` learns it in seconds from the dense network's own answers on unlabelled video, `calibrate` finds the
    threshold. Features: how luma differs from the last computed frame, bytes and frames since then, and how clear the
    last answer was. A frame that differs more than any it was taught on is computed.

    Attributes:
        weights: arrays of the gate by name; `fit` and `load` make them.
    """

    weights: dict[str, Array]
    threshold: float = 0.1
    parameter: ClassVar[str | None] = "threshold"
    reads: ClassVar[str] = "luma"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, 0, 1)
        n = len(FEATURES)
        shapes = {"mean": (n,), "std": (n,), "w1": (n, _HIDDEN), "b1": (_HIDDEN,), "w2": (_HIDDEN,), "b2": ()}
        shapes["most"] = (_N_LUMA,)
        came = {name: tuple(value.shape) for name, value in self.weights.items()}
        if came != shapes:
            raise ValueError(f"weights must be {shapes}, got {came}")
        if not all(np.isfinite(value).all() for value in self.weights.values()):
            raise ValueError("weights must be finite")

    def __repr__(self) -> str:
        return (
            f"LearnedGate(threshold={self.threshold}, max_staleness={self.max_staleness}, scene_cut={self.scene_cut})"
        )

    def judge(self, signals: Signals, state: PolicyState) -> Decision:
        assert state.reference is not None
        state.usual = _usual(state.usual, signals.packet_size, state.seen)
        state.carried += signals.packet_size / state.usual if state.usual else 0.0
        if signals.scores is None:
            raise ValueError("LearnedGate needs the last output of the network among the signals")
        row = luma_features(signals.luma, state.reference)
        if any(value > most for value, most in zip(row, self.weights["most"].tolist())):
            return Decision(COMPUTE, "more change than was learned from")
        row += other_features(state.staleness + 1, state.carried, signals.is_keyframe, lead(signals.scores))
        chance = self.chance(np.array(row))
        if chance > self.threshold:
            return Decision(COMPUTE, "answer may change", chance)
        return Decision(REUSE, "answer will stay", chance)

    def chance(self, row: Array) -> float:
        """Probability of another answer for one row of FEATURES."""
        w = self.weights
        hidden = np.maximum((row - w["mean"]) / w["std"] @ w["w1"] + w["b1"], 0)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, float(hidden @ w["w2"] + w["b2"])))))

    @classmethod
    def fit(
        cls,
        model: Any,
        video: Any,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        *,
        threshold: float = 0.1,
        seed: int = 0,
        max_staleness: int | None = None,
        scene_cut: float | None = None,
    ) -> LearnedGate:
        """Learn from one or several unlabelled videos (`VideoReader`), on every frame of which the network runs once.

        Raises:
            ValueError: its answer never changes in them, or with every frame: there is nothing to learn.
        """
        videos = video if isinstance(video, Sequence) and not hasattr(video, "packets") else [video]
        seen = [observe(model, one, preprocess) for one in videos]
        return cls(train(seen, seed), threshold, max_staleness=max_staleness, scene_cut=scene_cut)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the gate, its threshold and limits into a safetensors file; it appears whole or not at all."""
        metadata = {"format": _FORMAT, "threshold": repr(self.threshold)}
        for name in ("max_staleness", "scene_cut"):
            if getattr(self, name) is not None:
                metadata[name] = repr(getattr(self, name))
        if not self.back_off:
            metadata["back_off"] = "False"
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in self.weights.items()}
        with replace_atomically(path) as partial:
            save_file(tensors, partial, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LearnedGate:
        """A gate that `save` wrote.

        Raises:
            ValueError: not a saved LearnedGate.
            OSError: it cannot be read.
        """
        try:
            with safe_open(os.fspath(path), "pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name).double().numpy() for name in file.keys()}
            if metadata.get("format") != _FORMAT:
                raise ValueError("another kind of file")
            return cls(
                weights,
                float(metadata["threshold"]),
                max_staleness=int(metadata["max_staleness"]) if "max_staleness" in metadata else None,
                scene_cut=float(metadata["scene_cut"]) if "scene_cut" in metadata else None,
                back_off="back_off" not in metadata,
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a saved LearnedGate ({error})") from None


def train(videos: Sequence[Observation], seed: int = 0) -> dict[str, Array]:
    """Weights of a gate from pairs of frames: would the answer on the later one differ from that on the earlier?"""
    rows, labels = zip(*(pairs(seen, _MAX_PAIRS // max(1, len(videos)), seed) for seen in videos), strict=True)
    x = torch.from_numpy(np.concatenate(rows)).float()
    y = torch.from_numpy(np.concatenate(labels)).float()
    if len(y) == 0 or y.min() == y.max():
        what = "there are no two frames" if len(y) == 0 else "always changes" if y.min() > 0 else "never changes"
        raise ValueError(f"nothing to learn: the network's answer {what} in the video" if len(y) else what)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-3)
    x = (x - mean) / std
    generator = torch.Generator().manual_seed(seed)
    w1 = torch.randn(x.shape[1], _HIDDEN, generator=generator) / x.shape[1] ** 0.5
    w2 = torch.randn(_HIDDEN, generator=generator) / _HIDDEN**0.5
    b1, b2 = torch.zeros(_HIDDEN), torch.tensor(0.0)
    weights = [value.requires_grad_() for value in (w1, b1, w2, b2)]
    optimizer = torch.optim.Adam(weights, lr=0.02, weight_decay=1e-4)
    with torch.enable_grad():
        for _ in range(300):
            chosen = torch.randint(len(x), (min(len(x), 2048),), generator=generator)
            logits = torch.relu(x[chosen] @ w1 + b1) @ w2 + b2
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    named = dict(mean=mean, std=std, w1=w1, b1=b1, w2=w2, b2=b2)
    learned = {name: value.detach().double().numpy() for name, value in named.items()}
    return {**learned, "most": np.concatenate(rows)[:, :_N_LUMA].max(0)}


def pairs(seen: Observation, limit: int, seed: int) -> tuple[Array, Array]:
    """Features float64 [P, len(FEATURES)] and labels bool [P] of at most `limit` pairs of frames."""
    candidates = [(i, i + gap) for gap in _GAPS for i in range(len(seen) - gap)]
    if len(candidates) > limit:
        chosen = np.random.default_rng(seed).choice(len(candidates), limit, replace=False)
        candidates = [candidates[i] for i in sorted(chosen.tolist())]
    usual, carried = 0.0, [0.0]
    for index, size in enumerate(seen.packet_size[1:], 1):
        usual = _usual(usual, size, index)
        carried.append(carried[-1] + (size / usual if usual else 0.0))
    leads = [lead(output) for output in seen.outputs]
    answers = seen.answers.tolist()
    rows, labels = [], []
    for i, j in candidates:
        if seen.luma[i].shape != seen.luma[j].shape:
            continue
        row = luma_features(seen.luma[j], seen.luma[i])
        rows.append(row + other_features(j - i, carried[j] - carried[i], seen.is_keyframe[j], leads[i]))
        labels.append(answers[i] != answers[j])
    return np.array(rows, dtype=np.float64).reshape(-1, len(FEATURES)), np.array(labels, dtype=bool)


def luma_features(luma: Array, reference: Array) -> list[float]:
    """The first five FEATURES, of thumbnails of one shape."""
    difference = absolute_difference(luma, reference)
    blocks = block_sums(difference).ravel() / BLOCK**2
    if not blocks.size:
        blocks = difference.ravel().astype(np.float64)
    most = np.partition(blocks, -max(1, len(blocks) // 10))[-max(1, len(blocks) // 10) :]
    return [
        math.log(mean_of(difference) + _LEAST),
        math.log(float(most.max()) + _LEAST),
        math.log(float(most.mean()) + _LEAST),
        math.log(float((blocks > _CHANGED).mean()) + _LEAST),
        math.log(abs(mean_of(luma) - mean_of(reference)) + _LEAST),
    ]


def other_features(staleness: int, carried: float, is_keyframe: bool, last_lead: float) -> list[float]:
    """The last four FEATURES."""
    clear = math.log(min(last_lead, _LONGEST_LEAD) + _LEAST)
    return [math.log(min(staleness, _GAPS[-1])), math.log(carried + _LEAST), float(is_keyframe), clear]


def _usual(usual: float, size: int, seen: int) -> float:
    """Running mean of packet sizes: of all frames at first, then of the last 64 or so."""
    return usual + (size - usual) / min(max(seen, 1), 64)
