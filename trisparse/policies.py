"""Policies as the command line writes them: which frames of a video are computed, which tokens of a text stay.

Nothing here imports the domains before a policy is made, so that the names are at hand for a command's help.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common_models.names import did_you_mean

if TYPE_CHECKING:
    from nlp.prune import Policy as TokenPolicy
    from video.skip import Policy as FramePolicy


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"a finite number was expected after the colon, got {text!r}")
    return value


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"a whole number was expected after the colon, got {text!r}") from None


@dataclass(frozen=True)
class PolicyKind:
    """A policy as the command line writes it, `name` or `name:argument`.

    Attributes:
        policy: name of the class in its package.
        argument: what follows the colon, in capitals; empty where nothing may.
        optional: whether the argument may be left out, for the default of the class or `default`.
        read: from the argument's text to the first argument of the class.
        default: text of an argument that was left out, where the class has no default of its own.
        file: whether the argument names a file, which the class loads and which states the limits.
    """

    policy: str
    argument: str = ""
    optional: bool = False
    read: Callable[[str], Any] = _number
    default: str | None = None
    file: bool = False


@dataclass(frozen=True)
class Family:
    """The policies that one option chooses from.

    Attributes:
        option: the option.
        package: where the policies' classes are.
        kinds: the policies by their names on the command line.
    """

    option: str
    package: str
    kinds: dict[str, PolicyKind]

    def usage(self, name: str) -> str:
        """How a policy is written: `keyframes`, `every:N` or `luma[:LEVELS]`."""
        kind = self.kinds[name]
        if not kind.argument:
            return name
        return f"{name}[:{kind.argument}]" if kind.optional else f"{name}:{kind.argument}"

    def parse(self, text: str, **limits: Any) -> Any:
        """The policy that `text` names, made with `limits` as further arguments.

        Raises:
            ValueError: an unknown name; an argument that is missing, too much or does not fit.
        """
        name, colon, argument = text.partition(":")
        kind = self.kinds.get(name)
        if kind is None:
            known = ", ".join(map(self.usage, self.kinds))
            raise ValueError(f"{self.option} must be one of {known}, got {text!r}{did_you_mean(name, self.kinds)}")
        if colon and not kind.argument:
            raise ValueError(f"{self.option} {name} takes no argument, got {text!r}")
        if (colon and not argument) or not (colon or kind.optional or not kind.argument):
            raise ValueError(f"{self.option} {name} must be written {self.usage(name)}, got {text!r}")
        given = argument if colon else kind.default
        try:
            arguments = [] if given is None else [kind.read(given)]
            made = getattr(importlib.import_module(self.package), kind.policy)
            if not kind.file:
                return made(*arguments, **limits)
            if limits:
                options = " and ".join(f"--{name.replace('_', '-')}" for name in limits)
                raise ValueError(f"the file states its own limits, {options} cannot be given")
            return made.load(*arguments)
        except ValueError as error:
            raise ValueError(f"{self.option} {text}: {error}") from None


FRAMES = Family(
    "--policy",
    "video.skip",
    {
        "every": PolicyKind("EveryNth", "N", read=_whole_number),
        "keyframes": PolicyKind("KeyFrames"),
        "packets": PolicyKind("PacketSize", "BYTES"),
        "luma": PolicyKind("LumaDifference", "LEVELS", optional=True),
        "motion": PolicyKind("MotionVectors", "PIXELS"),
        "gate": PolicyKind("LearnedGate", "FILE", read=str, file=True),
        "exit": PolicyKind("Confidence", "PROBABILITY", optional=True, default="0.9"),
    },
)
TOKENS = Family(
    "--prune",
    "nlp.prune",
    {
        "cascade": PolicyKind("Cascade", "KEEP", optional=True),
        "merge": PolicyKind("Merge", "KEEP", optional=True),
        "mass": PolicyKind("Mass", "SHARE", optional=True),
        "threshold": PolicyKind("Threshold", "THETA", optional=True),
    },
)


def parse_policy(text: str, max_staleness: int | None = None, scene_cut: float | None = None) -> FramePolicy:
    """A policy for the frames of a video, as in `luma:1.5`.

    Args:
        max_staleness, scene_cut: limits that all policies share; None leaves the policy's own.

    Raises:
        ValueError: see `Family.parse`.
        OSError: the file of a learned gate cannot be read.
    """
    limits = {"max_staleness": max_staleness, "scene_cut": scene_cut}
    policy: FramePolicy = FRAMES.parse(text, **{key: limit for key, limit in limits.items() if limit is not None})
    return policy


def parse_prune(text: str) -> tuple[str, TokenPolicy]:
    """A policy that removes tokens, as in `merge:0.7`; and how to write it with its number.

    Raises:
        ValueError: see `Family.parse`.
    """
    policy: TokenPolicy = TOKENS.parse(text)
    first = getattr(policy, next(iter(policy.__dataclass_fields__)))  # type: ignore[attr-defined]
    return f"{text.partition(':')[0]}:{first:g}", policy
