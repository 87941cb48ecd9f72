"""Shapes and text of a picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pointcloud.picture.canvas import BACKGROUND, HEIGHT, WHITE, WIDTH, Box, Canvas, find_font, fit, mix, printable

pytest.importorskip("PIL")

RED = (255, 0, 0)


def test_shapes_lie_where_they_are_drawn() -> None:
    canvas = Canvas()
    canvas.bar(100, 200, 30, 4, RED)
    canvas.swatch(500, 300, 16, WHITE)
    image = canvas.finish()
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    red = np.argwhere((image == RED).all(axis=2))
    assert red.min(axis=0).tolist() == [200, 100] and red.max(axis=0).tolist() == [203, 129] and len(red) == 120
    swatch = image[300:316, 500:516]
    assert (swatch[8] == WHITE).all() and (swatch[:, 8] == WHITE).all()
    assert (swatch[0, 0] == BACKGROUND).all() and np.array_equal(swatch, swatch[::-1, ::-1])
    assert int((image != BACKGROUND).any(axis=2).sum()) <= 120 + 256


def test_shapes_beyond_the_edge_are_cut() -> None:
    canvas = Canvas()
    canvas.bar(-10, -10, 20, 20, RED)
    canvas.bar(-30, 50, 20, 20, RED)
    canvas.bar(WIDTH - 5, HEIGHT - 5, 100, 100, RED)
    assert int((canvas.finish() == RED).all(axis=2).sum()) == 10 * 10 + 5 * 5


def test_a_panel_is_painted_through_its_view() -> None:
    canvas, box = Canvas(), Box(10, 20, 30, 40)
    canvas.pixels(box)[:] = 0xFFFFFFFF
    white = np.argwhere((canvas.finish() == WHITE).all(axis=2))
    assert white.min(axis=0).tolist() == [20, 10] and white.max(axis=0).tolist() == [59, 39]


@pytest.fixture(params=["DejaVu Sans", "Pillow's own"])
def font_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Text in the font that matplotlib brings, and in the one that is always there."""
    from PIL import ImageFont

    find_font.cache_clear()
    if request.param != "DejaVu Sans":

        def missing(*_: object) -> None:
            raise OSError("no such font")

        # Pillow's own font is read from memory by the same function.
        real = ImageFont.truetype

        def own(font: object, *rest: object, **named: object) -> object:
            return missing() if isinstance(font, str) else real(font, *rest, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(ImageFont, "truetype", own)
    else:
        pytest.importorskip("matplotlib")
    yield request.param
    find_font.cache_clear()


def test_text_stands_at_its_anchor(font_name: str) -> None:
    canvas = Canvas()
    canvas.text(300, 400, "−5 m · H", 20, WHITE)
    canvas.text(1000, 400, "H", 20, WHITE, "rs", bold=True)
    canvas.text(40, 700, "upright", 12, WHITE, upright=True)
    lit = np.argwhere((canvas.finish() != BACKGROUND).any(axis=2))
    first, second = lit[(lit[:, 1] > 200) & (lit[:, 1] < 700)], lit[lit[:, 1] > 700]
    turned = lit[lit[:, 1] < 200]
    assert 298 <= first[:, 1].min() <= 304 and 380 <= first[:, 0].min() and 397 <= second[:, 0].max() <= 400
    assert second[:, 1].max() <= 1000
    height, width = np.ptp(turned, axis=0)
    assert height > 2 * width and np.abs(turned.mean(axis=0) - [700, 40]).max() < 5


def test_dashes_are_letters_of_the_font(font_name: str) -> None:
    words = printable("−1 – 2\n3", find_font(12))
    assert words == ("−1 – 2 3" if font_name == "DejaVu Sans" else "-1 - 2 3")


@pytest.mark.parametrize("words", ["", "short", "a very long name indeed " * 5, "x" * 100_000])
def test_words_are_cut_to_fit(words: str, font_name: str) -> None:
    shown = fit(words, 16, 130)
    font = find_font(16)
    assert font.getlength(shown) <= 130
    if shown != words:
        assert shown.endswith("…") and words.startswith(shown[:-1])
        assert font.getlength(words[: len(shown)] + "…") > 130


def test_mixing_colours() -> None:
    assert mix(RED, 1) == RED and mix(RED, 0, WHITE) == WHITE and mix((0, 0, 0), 0.5, (100, 200, 50)) == (50, 100, 25)
