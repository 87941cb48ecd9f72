"""The demonstration: sweeps labelled, a camera's frames answered, texts embedded, beside what others do; one page."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

from trisparse.demo.kernels import compiled_aside


def run(folder: Path, model: str, compare: bool = True, quick: bool = False) -> Path:
    """Label the sweeps, time the peers, answer the clips, embed the texts, write all to `folder`; the page's path.

    Args:
        folder: for the page, pictures, clouds and clips; created where it is missing.
        model: a network that labels clouds, by name or file.
        compare: whether spconv's layers and ours are timed side by side.
        quick: one sweep, one clip and fewer texts, in about a minute.

    Raises:
        ValueError, OSError: an unknown model, a folder that cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    progress.begin("The demonstration of Trisparse: LiDAR sweeps, a video camera, texts")
    # In the order of need; a quick demonstration that has a real sweep simulates none.
    groups = ("products", "video", "texts", "rays") if quick else ("products", "rays", "video", "texts")
    with compiled_aside(groups) as compilation:
        # Here, not above: the other processes start before torch is loaded into this one.
        from trisparse.demo.parts import write_demonstration

        return write_demonstration(folder, model, compare, quick, progress, compilation)


class Progress:
    """Says what is being done, and how long after the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def begin(self, part: str) -> None:
        """Print the title of a part."""
        print(f"\n[{time.perf_counter() - self._start:3.0f} s] {part}", flush=True)

    def say(self, text: str) -> None:
        """Print a line of a part."""
        print(f"  {text}", flush=True)

    def paragraphs(self, *texts: str) -> None:
        """Print texts, in lines that fit a terminal; empty ones are left out."""
        for text in filter(None, texts):
            print(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="  "), flush=True)
