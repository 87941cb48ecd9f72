"""What was done with each frame, why, and at what price."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from video.skip.policy import COMPUTE, EXIT, REUSE

STAGES = ("decode", "signals", "convert", "prepare", "network")
_FORMAT = "trisparse.Trace"


@dataclass(frozen=True)
class TraceEntry:
    """One frame.

    Attributes:
        action: "compute", "reuse" or "exit".
        why: the policy's reason.
        signal: the number that was held against the policy's threshold, where there was one.
        reset: the network's state began anew with this frame.
        decoded: the frame was decoded, for itself or because a later computed frame needs it.
        converted: its pixels were turned into RGB.
        staleness: frames since the one that the answer was computed on.
        answer: the best class of the answer, where the answer is logits.
        seconds: CPU time by stage.
    """

    index: int
    time: float
    action: str
    why: str
    is_keyframe: bool = False
    packet_size: int = 0
    signal: float | None = None
    reset: bool = False
    decoded: bool = False
    converted: bool = False
    staleness: int = 0
    answer: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Trace:
    """The entries of one run in the order of the visits."""

    def __init__(self, entries: list[TraceEntry] | None = None) -> None:
        self.entries = entries if entries is not None else []

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[TraceEntry]:
        return iter(self.entries)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={value}" for name, value in self.counts.items())
        return f"Trace({counts}, cpu_seconds={sum(self.seconds.values()):.3f})"

    @property
    def counts(self) -> dict[str, int]:
        """Frames by what was done with them."""
        return {
            "frames": len(self.entries),
            "decoded": sum(entry.decoded for entry in self.entries),
            "converted": sum(entry.converted for entry in self.entries),
            "computed": sum(entry.action == COMPUTE for entry in self.entries),
            "reused": sum(entry.action == REUSE for entry in self.entries),
            "left": sum(entry.action == EXIT for entry in self.entries),
        }

    @property
    def reasons(self) -> dict[str, int]:
        """Frames by "action: why", most frequent first."""
        found: dict[str, int] = {}
        for entry in self.entries:
            key = f"{entry.action}: {entry.why}"
            found[key] = found.get(key, 0) + 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds by stage, all threads of the process."""
        return {stage: sum(entry.seconds.get(stage, 0.0) for entry in self.entries) for stage in STAGES}

    @property
    def worst_staleness(self) -> int:
        """The most frames that an answer was carried on."""
        return max((entry.staleness for entry in self.entries if entry.action == REUSE), default=0)

    def to_json(self) -> str:
        """The whole trace; `from_json` reads it."""
        summary = {"counts": self.counts, "seconds": self.seconds, "reasons": self.reasons}
        return json.dumps({"format": _FORMAT, **summary, "entries": [asdict(entry) for entry in self.entries]})

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """A trace that `to_json` wrote.

        Raises:
            ValueError: the text is none.
        """
        try:
            content: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"text must be a trace in JSON, got something else ({error})") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"text must be a trace in JSON (format {_FORMAT!r}), got other JSON")
        known = {item.name for item in fields(TraceEntry)}
        try:
            return cls([TraceEntry(**{k: v for k, v in row.items() if k in known}) for row in content["entries"]])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"text must be a trace in JSON with complete entries ({error})") from None
