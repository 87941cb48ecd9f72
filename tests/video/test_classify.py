"""Classifier: loaded by name, called on one video, fed a stream of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.video.clips import texture, write_clip
from video import Classifier, VideoReader, load_pretrained


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{i}.mp4", [texture(20 * i + j) for j in range(12)]) for i in range(2)]


def test_a_call_is_the_answer_for_the_whole_video(clips: list[Path]) -> None:
    classifier = Classifier.load("tsm-motion-digits")
    with VideoReader(clips[0]) as reader:
        called, asked = classifier(reader), classifier.video(reader)
        frames = torch.stack([reader[i] for i in asked.frames.flatten().tolist()])
    assert called.best == asked.best and torch.equal(called.frames, asked.frames)
    # The network as loaded, by hand.
    model = load_pretrained("tsm-motion-digits")
    with torch.no_grad():
        expected = model(classifier.preprocess(frames)[0]).flatten().softmax(0)
    names = classifier.card.class_names
    assert called.best[0].label == called.best[0].name == names[int(expected.argmax())]
    assert {score.label: score.probability for score in called.best} == pytest.approx(
        dict(zip(names, expected.tolist())), abs=1e-4
    )


def test_a_stream_answers_as_it_is_asked(clips: list[Path]) -> None:
    classifier = Classifier.load("tsm-motion-digits")
    opened = []

    def readers():
        for path in clips:
            opened.append(path)
            with VideoReader(path) as reader:
                yield reader

    answers = classifier.stream(readers())
    assert opened == []
    first = next(answers)
    assert opened == clips[:1]
    with VideoReader(clips[0]) as reader:
        assert first.best == classifier(reader).best
    assert len(list(answers)) == 1
    assert list(classifier.stream([])) == []


def test_threads_and_dtype(clips: list[Path]) -> None:
    before = torch.get_num_threads()
    try:
        classifier = Classifier.load("tsm-motion-digits", dtype="bf16", threads=1)
        assert torch.get_num_threads() == 1 and classifier.model.acceleration.dtype == torch.bfloat16
        Classifier.load("tsm-motion-digits")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="threads must be"):
        Classifier.load("tsm-motion-digits", threads=0)
    with pytest.raises(ValueError, match="did you mean 'tsm-motion-digits'"):
        Classifier.load("tsm-motion-digit")
