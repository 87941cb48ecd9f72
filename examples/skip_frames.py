"""Answer every frame of a video, but compute only what changed: `python examples/skip_frames.py [clip.mp4]`."""

import sys
import tempfile
from pathlib import Path

import av
import numpy as np

import video


def make_clip(path: Path) -> Path:
    """A still scene of 60 frames, through the second half of which a bright square moves."""
    scene = np.random.default_rng(0).integers(60, 120, (8, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, width=128, height=128, pix_fmt="yuv420p")
        for i in range(60):
            image = scene.copy()
            if i >= 30:
                image[40:64, 2 * i : 2 * i + 8] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        reader = video.VideoReader(sys.argv[1] if len(sys.argv) > 1 else make_clip(Path(folder) / "clip.mp4"))
        # Of the frames that the policy computes, delta computes only the pixels that changed.
        classifier = video.Classifier(video.load_pretrained("tsm-motion-digits"), dtype=None, delta=0.02)
        trace = video.skip.Trace()
        answers = list(classifier.frames(reader, video.skip.LumaDifference(1.0), trace))
        print("".join("#" if answer.action == "compute" else "." for answer in answers), "(# computed, . reused)")
        print(f"last answer: {answers[-1].best[0].name}")
        print(trace)


if __name__ == "__main__":
    main()
