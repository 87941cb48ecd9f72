"""A network whose shifts read the frame before sees the frames that an early exit visits in their order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from video.preprocess import Preprocess
from video.pretrained import load_pretrained
from video.skip import Confidence, LumaDifference, Trace, calibrate, run
from video.stream import Stream
from video.training.clips import CLASS_NAMES, digits, motion_clips

pytest.importorskip("sklearn")
av = pytest.importorskip("av")

from video.reader import VideoReader  # noqa: E402


def write(path: Path, frames: torch.Tensor) -> Path:
    """Lossless, every frame a key frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        stream.codec_context.gop_size = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), "rgb24")))
        container.mux(stream.encode())
    return path


def test_motion_is_named_after_an_exit(tmp_path: Path) -> None:
    images, _ = digits(True)
    labels = torch.arange(len(CLASS_NAMES))
    clips = motion_clips(images[: len(labels)], labels, seed=5)
    model = load_pretrained("tsm-motion-digits")
    card = model.card
    prepare = Preprocess(card.size, card.size, card.mean, card.std)  # type: ignore[arg-type]
    named = []
    for label, clip in zip(labels.tolist(), clips, strict=True):
        trace = Trace()
        with VideoReader(write(tmp_path / f"{label}.mkv", clip)) as reader:
            assert len(reader.keyframes) == len(reader) == len(clip)
            policy = Confidence(1.0, frames=len(clip))
            results = list(run(reader, Stream(model), policy, prepare, trace=trace))
        assert [result.index for result in results[:-1]] == list(range(len(clip)))
        named.append(int(results[-1].output.argmax()))
    assert named == labels.tolist()


def test_training_networks_are_not_observed(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mkv", torch.zeros(3, 48, 48, 3, dtype=torch.uint8))
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.LazyLinear(4)).eval()
    model[0].train()  # a part is enough
    with VideoReader(clip) as reader, pytest.raises(ValueError, match="evaluation mode"):
        calibrate(model, reader, LumaDifference(), preprocess=Preprocess(8, 8))
    assert int(model[0].num_batches_tracked) == 0  # type: ignore[arg-type]
