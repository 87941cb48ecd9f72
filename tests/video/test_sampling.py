"""sample_indices against published index tables and the defining formulas."""

from __future__ import annotations

import pytest
import torch

from video.sampling import sample_indices


def test_uniform_takes_the_middle_of_each_part() -> None:
    assert sample_indices(80, 8).tolist() == [[5, 15, 25, 35, 45, 55, 65, 75]]
    assert sample_indices(250, 8).tolist() == [[15, 46, 78, 109, 140, 171, 203, 234]]


def test_twice_adds_the_beginning_of_each_part() -> None:
    assert sample_indices(250, 8, "twice").tolist() == [
        [15, 46, 78, 109, 140, 171, 203, 234],
        [0, 31, 62, 93, 125, 156, 187, 218],
    ]


def test_dense_takes_ten_windows_of_64() -> None:
    clips = sample_indices(154, 8, "dense")
    assert clips[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert clips[3].tolist() == [30, 38, 46, 54, 62, 70, 78, 86]
    assert sample_indices(300, 16, "dense")[9].tolist() == list(range(236, 300, 4))


def test_dense_goes_round_in_a_short_video() -> None:
    clips = sample_indices(20, 8, "dense")
    assert clips.tolist() == [[0, 8, 16, 4, 12, 0, 8, 16]] * 10
    assert sample_indices(20, 8, "dense", starts=1).shape == (1, 8)


def test_dense_with_a_generator_starts_anywhere() -> None:
    generator = torch.Generator().manual_seed(3)
    clips = sample_indices(100, 8, "dense", starts=500, generator=generator)
    assert set(clips[:, 0].tolist()) == set(range(36))  # 0 to N - 65, as published
    assert (clips.diff(dim=1) == 8).all()
    assert sample_indices(100, 8, "dense", generator=generator).shape == (1, 8)
    assert sample_indices(30, 8, "dense", generator=generator)[0, 0] == 0


def test_random_takes_any_frame_of_each_part() -> None:
    generator = torch.Generator().manual_seed(0)
    clips = torch.cat([sample_indices(35, 4, "random", generator=generator) for _ in range(400)])
    for i in range(4):
        assert set(clips[:, i].tolist()) == set(range(8 * i, 8 * i + 8))


def test_random_is_repeatable() -> None:
    first, again = (sample_indices(99, 8, "random", generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)


def test_fewer_frames_than_segments() -> None:
    assert sample_indices(3, 8).tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert sample_indices(1, 8, "twice").tolist() == [[0] * 8] * 2
    assert sample_indices(3, 8, "random").tolist() == [[0] * 8]


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((0, 8), {}, "n_frames must be at least 1, got 0"),
        ((10, 0), {}, "num_segments must be at least 1, got 0"),
        ((8.5, 2), {}, "n_frames must be a whole number, got 8.5"),
        ((8, True), {}, "num_segments must be a whole number, got True"),
        ((10, 8, "unifrom"), {}, "did you mean 'uniform'"),
        ((10, 65, "dense"), {}, "at most 64 for mode 'dense', got 65"),
        ((10, 8), {"starts": 3}, "starts .* belongs to mode 'dense'"),
        ((10, 8, "dense"), {"starts": 0}, "starts must be at least 1"),
        ((10, 8, "twice"), {"generator": torch.Generator()}, "'twice' is not random"),
    ],
)
def test_refusals(arguments: tuple, keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_indices(*arguments, **keywords)
