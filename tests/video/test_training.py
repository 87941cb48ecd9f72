"""The motion task and its training: what makes a clip's class, what one frame tells of it, stopping and going on."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.video.failing import fail_after_writing
from video.models import TSM
from video.preprocess import Preprocess
from video.pretrained import load_pretrained
from video.stream import RecentMean, Stream
from video.training import (
    CLASS_NAMES,
    VARIANTS,
    Recipe,
    build,
    digits,
    held_out_accuracy,
    live_frames,
    motion_clips,
    random_clips,
    train,
    write_live_clip,
)
from video.training import __main__ as command
from video.training.clips import PLACES, STEPS, order, random_scenes, render
from video.training.train import learning_rate, network_input

TINY = Recipe(epochs=2, batch_size=8, held_out_rounds=1, width=8, size=16)
NAME = "tsm-motion-digits"
# The module, which its package's function of the same name hides.
LOOP = importlib.import_module("video.training.train")


def images(n: int = 4) -> Tensor:
    """Stand-ins for digits: scikit-learn is not always there."""
    return torch.randint(0, 17, (n, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("index", range(len(CLASS_NAMES)), ids=CLASS_NAMES)
def test_every_order_visits_every_place_once(index: int) -> None:
    assert sorted(order(index).tolist()) == list(range(PLACES))


def test_no_two_orders_are_one() -> None:
    """Not even after a turn of the circle, which starts at a random angle."""
    turns = [{tuple(((order(i) + turn) % PLACES).tolist()) for turn in range(PLACES)} for i in range(len(CLASS_NAMES))]
    for i, first in enumerate(turns):
        for second in turns[:i]:
            assert not first & second


def test_classes_of_a_scene_hold_the_same_frames() -> None:
    """So that a network which takes frames one by one gives all classes one answer."""
    clips = [motion_clips(images(), torch.full((4,), i), seed=3) for i in range(len(CLASS_NAMES))]
    for i, clip in enumerate(clips):
        by_place = torch.empty_like(clip)
        by_place[:, order(i)] = clip
        assert torch.equal(by_place, clips[0])
        if i:
            assert not torch.equal(clip, clips[0])


def test_clockwise_is_clockwise_on_the_screen() -> None:
    scenes = replace(random_scenes(torch.full((6, 8, 8), 16), seed=1), noise=torch.zeros(6))
    scenes = replace(scenes, background=torch.zeros(6, 3, 48, 48), ink=torch.full((6, 3), 255.0))
    frames = render(scenes)[:, order(CLASS_NAMES.index("clockwise")), :, :, 0].double()  # [6, 8, 48, 48]
    pixels = torch.arange(48) + 0.5
    mass = frames.sum((-1, -2))
    x, y = (frames.sum(-2) * pixels).sum(-1) / mass, (frames.sum(-1) * pixels).sum(-1) / mass
    # The area that the path encloses is positive when x points right, y down, and the path turns clockwise.
    area = (x * y.roll(-1, 1) - y * x.roll(-1, 1)).sum(1)
    assert (area > 100).all()


def test_clips_are_the_same_for_the_same_seed() -> None:
    for a, b in zip(random_clips(images(), 5), random_clips(images(), 5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(random_clips(images(), 5)[0], random_clips(images(), 6)[0])
    clips, labels = random_clips(images(0), 5)
    assert clips.shape == (0, 8, 48, 48, 3)
    assert labels.shape == (0,)


def test_looks_are_independent_of_the_class() -> None:
    """Labels and scenes come of one seed, but not of the same random numbers."""
    clips, labels = random_clips(images(1).expand(500, -1, -1), 7, size=16)
    looks = torch.stack(
        [clips.float().mean((1, 2, 3, 4)), clips[:, 0].float().std((1, 2, 3)), clips[:, 0, 0, 0, 0] * 1.0]
    )
    for look in looks:
        means = torch.stack([look[labels == i].mean() for i in range(len(CLASS_NAMES))])
        # Five means of some 100 clips each: 4 standard errors.
        assert (means - look.mean()).abs().max() < 4 * look.std() / 9


def test_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="labels must be one for each of 4 images, got 3"):
        motion_clips(images(), torch.zeros(3, dtype=torch.int64), 0)


def test_a_live_clip_goes_on_where_it_was() -> None:
    motions = list(range(len(CLASS_NAMES)))
    shown = list(live_frames(images()[0], motions, seed=2, size=32))
    assert [label for _, label in shown] == [m for m in motions for _ in range(PLACES)]
    place = {frame.numpy().tobytes(): i for i, frame in enumerate(render(random_scenes(images()[:1], 2, 32))[0])}
    places = [place[frame.numpy().tobytes()] for frame, _ in shown]
    for i, motion in enumerate(motions):
        steps = STEPS[CLASS_NAMES[motion]]
        taken = [(b - a) % PLACES for a, b in zip(places[i * 8 : i * 8 + 8], places[i * 8 + 1 : i * 8 + 8])]
        assert taken == [step % PLACES for step in steps]


def test_write_live_clip(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    pytest.importorskip("sklearn")
    path = tmp_path / "live.mp4"
    assert write_live_clip(path, [0, 4], size=64) == [0] * 8 + [4] * 8
    assert os.listdir(tmp_path) == ["live.mp4"]
    with av.open(os.fspath(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 16
    expected = [frame for frame, _ in live_frames(digits(held_out=True)[0][0], [0, 4], 0, 64)]
    for frame, original in zip(frames, expected, strict=True):
        assert (torch.from_numpy(frame).float() - original.float()).abs().mean() < 12
    with pytest.raises(ValueError, match="size must be even and at least 2, got 63"):
        write_live_clip(path, [0], size=63)
    with pytest.raises(ValueError, match="motions must be in 0 to 4, got 5"):
        write_live_clip(path, [0, 5])


def test_held_out_digits_are_not_trained_on() -> None:
    pytest.importorskip("sklearn")
    (train_images, train_digits), (test_images, test_digits) = digits(held_out=False), digits(held_out=True)
    assert len(train_images) + len(test_images) == 1797
    assert set(train_digits.tolist()) == set(test_digits.tolist()) == set(range(10))
    seen = {image.numpy().tobytes() for image in train_images}
    assert sum(image.numpy().tobytes() in seen for image in test_images) <= 1


def test_the_network_without_shift_cannot_tell_the_classes_apart() -> None:
    model = build(Recipe(), "no-shift").eval()
    clips = torch.cat([motion_clips(images(2), torch.full((2,), i), seed=3) for i in range(len(CLASS_NAMES))])
    with torch.no_grad():
        logits = model(network_input(clips, 48)).view(len(CLASS_NAMES), 2, -1)
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), rtol=0, atol=1e-6)


def test_variants() -> None:
    assert build(TINY, "past").direction == "past"
    assert build(TINY, "both").direction == "both"
    assert not build(TINY, "no-shift").shift
    with pytest.raises(ValueError, match="variant must be one of past, both, no-shift, got 'none'"):
        build(TINY, "none")


def test_learning_rate_rises_and_falls() -> None:
    factors = [learning_rate(step, 100) for step in range(100)]
    assert max(factors) == factors[29] == 1
    assert factors[0] < 0.05
    assert factors[-1] < 0.01
    assert learning_rate(0, 1) > 0


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOOP, "digits", lambda held_out: (images(20), torch.zeros(20)))


@pytest.mark.usefixtures("few_digits")
def test_training_that_was_stopped_ends_where_it_would_have(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    state = torch.get_rng_state()
    whole = train(TINY, "past", progress=False)
    assert torch.equal(torch.get_rng_state(), state)

    class Stop(Exception):
        pass

    epoch_of = LOOP.train_epoch

    def stopping(model: TSM, optimizer: torch.optim.Optimizer, shown: Tensor, recipe: Recipe, epoch: int) -> float:
        if epoch == 1:
            raise Stop
        return epoch_of(model, optimizer, shown, recipe, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOOP, "train_epoch", stopping)
        with pytest.raises(Stop):
            train(TINY, "past", path, progress=False)
    resumed = train(TINY, "past", path, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"checkpoint of another run: its recipe is .*: remove the file"):
        train(replace(TINY, seed=1), "past", path, progress=False)
    with pytest.raises(ValueError, match="checkpoint of another run: its variant is 'past', here it is 'both'"):
        train(TINY, "both", path, progress=False)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a checkpoint of this training"):
        train(TINY, "past", path, progress=False)


@pytest.mark.usefixtures("few_digits")
def test_a_failing_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.checkpoint"
    train(replace(TINY, epochs=1), "past", path, progress=False)
    torch.save({**torch.load(path), "run": {"variant": "past", "recipe": asdict(TINY)}}, path)
    before = path.read_bytes()
    fail_after_writing(monkeypatch, "torch.save", 1)
    with pytest.raises(OSError, match="disk full"):
        train(TINY, "past", path, progress=False)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


@pytest.mark.usefixtures("few_digits")
def test_a_failing_write_leaves_the_old_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setattr("video.training.record.digits", lambda held_out: (images(4), torch.zeros(4)))
    path = tmp_path / "live.mp4"
    path.write_bytes(b"old")
    fail_after_writing(monkeypatch, "av.open")
    with pytest.raises(OSError, match="disk full"):
        write_live_clip(path, [1])
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


@pytest.mark.usefixtures("few_digits")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "weights.safetensors"
    arguments = ["--epochs", "1", "--held-out-rounds", "1", "--size", "16", "-o", os.fspath(output)]
    assert command.main(arguments) == 0
    assert sorted(os.listdir(tmp_path)) == [
        "weights-both.safetensors",
        "weights-no-shift.safetensors",
        "weights.safetensors",
    ]
    model = load_pretrained(output)
    assert isinstance(model, TSM)
    assert model.direction == "past"
    assert model.card.recipe["epochs"] == 1  # type: ignore[union-attr,index]
    assert json.dumps(model.card.results, indent=2) in capsys.readouterr().out  # type: ignore[union-attr]


@pytest.mark.usefixtures("few_digits")
def test_the_command_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "weights.safetensors"

    def stop(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(LOOP, "train_epoch", stop)
    assert command.main(["-o", os.fspath(output)]) == 130
    assert "Run the same command again to continue" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    command.checkpoint(output, "past").write_bytes(b"something else")
    assert command.main(["-o", os.fspath(output)]) == 1
    assert "is not a checkpoint of this training" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["-o", os.fspath(tmp_path / "absent" / "w.safetensors")])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shipped_networks_do_what_their_cards_say(variant: str) -> None:
    pytest.importorskip("sklearn")
    model = load_pretrained(NAME if variant == "past" else f"{NAME}-{variant}")
    assert isinstance(model, TSM)
    accuracy = held_out_accuracy(model, replace(Recipe(), held_out_rounds=1))
    assert accuracy == pytest.approx(model.card.results["accuracy"][variant], abs=0.05)  # type: ignore[union-attr]
    if variant == "no-shift":
        assert accuracy < 0.3
    else:
        assert accuracy >= 0.95


def test_the_shipped_network_on_a_file_shown_live(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    pytest.importorskip("sklearn")
    motions = [1, 3, 0, 4, 2]
    path = tmp_path / "live.mp4"
    write_live_clip(path, motions, seed=1)
    stream, recent = Stream(load_pretrained(NAME)), RecentMean(PLACES)
    state = recent_state = None
    named = []
    with av.open(os.fspath(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))[None]
            logits, state = stream.step(Preprocess(48, 48)(pixels)[0], state)
            mean, recent_state = recent.step(logits, recent_state)
            if i % PLACES == PLACES - 1:
                named.append(int(mean.argmax()))
    assert named == motions
