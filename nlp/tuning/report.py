"""What a calibration found."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import nn

from common_models import calibration
from nlp.accelerate import accelerate
from nlp.prune.policy import Policy


@dataclass(frozen=True)
class Candidate:
    """One policy, measured.

    Attributes:
        family: its kind.
        policy: what `accelerate` takes.
        speedup: time of the packed network without pruning over time with it, both measured in turn.
        seconds: of the pruned network on the batches that were timed.
        loss: mean over the texts.
        error: standard error of that mean.
        kept: share of the tokens alive in each layer and at the end.
        texts: how many the loss is of.
    """

    family: str
    policy: Policy
    speedup: float
    seconds: float
    loss: float
    error: float
    kept: tuple[float, ...]
    texts: int

    def at_most(self, confidence: float) -> float:
        """What the true loss does not exceed, with this confidence."""
        return self.loss + NormalDist().inv_cdf(confidence) * self.error


@dataclass(frozen=True, kw_only=True)
class Calibration(calibration.Calibration):
    """The policy that was chosen on one half of the texts, what it does to the other, and all that was tried.

    Where no policy does what was asked for, `gains` is False, `why` says what is missing, and `accelerate` gives the
    packed network without pruning. `estimate` and `error` are those of `held_out`.

    Attributes:
        policy: for `nlp.accelerate(model, prune=policy)`; None where nothing gains.
        chosen: its figures on the half that was searched on: a little too good, as the best of many.
        held_out: its figures on the other half, which no choice depended on.
        nearest: what was chosen, else the policy that comes nearest; None where nothing was measured.
        table: every policy that was measured.
        why: what nothing reaches; empty where a policy was chosen.
        metric: what the losses are.
        target_speedup: what was asked for beside `max_drop`.
        mean_tokens: of a text.
        percent: whether the losses are shares of texts, shown in points.
        model: the network it was found for.
        dtype: that it was found for.
        task: as `accelerate` takes it.
    """

    policy: Policy | None
    chosen: Candidate | None
    held_out: Candidate | None
    nearest: Candidate | None
    table: tuple[Candidate, ...]
    why: str = ""
    metric: str
    target_speedup: float | None
    mean_tokens: float
    percent: bool
    model: nn.Module = field(repr=False)
    dtype: torch.dtype | str | None = None
    task: str = "auto"

    @property
    def holds(self) -> bool:
        """Whether what was asked for is true of the half that was not searched on, the loss with its confidence."""
        speedup = 1.0 if self.held_out is None else self.held_out.speedup
        return super().holds and (self.target_speedup is None or speedup >= self.target_speedup)

    def accelerate(self) -> Any:
        """The network with the policy."""
        return accelerate(self.model, prune=self.policy, dtype=self.dtype, task=self.task)

    def __str__(self) -> str:
        wish = [] if self.max_drop is None else [f"{self.metric} of at most {self._number(self.max_drop)}"]
        wish += [] if self.target_speedup is None else [f"at least {self.target_speedup:.2f}x as fast as packed"]
        lines = [f"asked for: {', '.join(wish)}; texts of {self.mean_tokens:.0f} tokens in the mean", ""]
        if self.table:
            lines += [*table(self.table, self.metric, self.percent, self.chosen), ""]
        held = self.held_out
        if held is None:
            return "\n".join([*lines, f"nothing gains: {self.why}"])
        verdict = "holds" if self.holds else "does NOT hold"
        lines += [
            f"chosen: {self.policy}",
            f"on {held.texts} texts that were not searched on: {self.metric} {self._number(self.estimate)} ± "
            f"{self._number(self.error)} (at most {self._number(self.at_most)} with {self.confidence:.0%} confidence), "
            f"{held.speedup:.2f}x; what was asked for {verdict}",
        ]
        return "\n".join(lines)

    def _number(self, value: float) -> str:
        return number(value, self.percent)


def number(value: float, percent: bool) -> str:
    """A loss: in points where it is a share of texts."""
    return f"{100 * value:.2f} points" if percent else f"{value:.4f}"


def table(candidates: tuple[Candidate, ...], metric: str, percent: bool, chosen: Candidate | None = None) -> list[str]:
    """Lines of a table of candidates, the fastest last."""
    wide = max([len(each.family) for each in candidates] + [6])
    lines = [f"  {'policy':{wide}}  speed-up  {metric + ' ± s.e.':>24}  tokens alive in each layer and at the end"]
    scale = 100 if percent else 1
    for each in sorted(candidates, key=lambda each: each.speedup):
        loss = f"{scale * each.loss:.4f} ± {scale * each.error:.4f}"
        kept = " ".join(f"{share:.2f}" for share in each.kept)
        lines.append(f"{'*' if each is chosen else ' '} {each.family:{wide}}  {each.speedup:7.2f}x  {loss:>24}  {kept}")
    return lines
