"""What one frame of a stream cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """The work of one frame.

    Attributes:
        frame: its number, from 0 on.
        mode: "whole" (the first frame, those of `refresh`, and where a fifth of the voxels came and went) or "changed".
        voxels: rows of the input.
        appeared, vanished, changed: of these, since the frame before; `changed` are those whose features moved by more
            than the threshold. In a frame as a whole, all appeared.
        layers: of each layer, by its name, the output rows that were computed, and all.
        share: of the multiplications that the layers would do as a whole.
    """

    frame: int
    mode: str
    voxels: int
    appeared: int
    vanished: int
    changed: int
    layers: dict[str, tuple[int, int]]
    share: float

    @property
    def input_share(self) -> float:
        """Voxels that appeared or changed, of all."""
        return (self.appeared + self.changed) / self.voxels if self.voxels else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The same for json.dumps."""
        layers = {name: list(rows) for name, rows in self.layers.items()}
        return {**asdict(self), "layers": layers, "input_share": self.input_share}


def share_of(work: dict[str, tuple[int, int, int, int]]) -> float:
    """The share of the multiplications; of each layer rows computed, all rows, and the multiplications of both."""
    whole = sum(all_ for _, _, _, all_ in work.values())
    return sum(done for _, _, done, _ in work.values()) / whole if whole else 0.0
