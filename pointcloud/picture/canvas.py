"""A picture in the making: shapes and points twice as large as in the end, then text at its own size."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pointcloud.picture.splat import packed

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

Color = tuple[int, int, int]

WIDTH, HEIGHT = 1600, 1000
BACKGROUND, PANEL, GRID, TEXT, FAINT = (14, 17, 22), (21, 26, 33), (57, 66, 78), (230, 233, 238), (141, 151, 165)
WHITE = (255, 255, 255)
# Shapes and points are drawn this many times larger and averaged: soft edges.
OVERSAMPLE = 2


@dataclass(frozen=True)
class Box:
    """A panel in pixels from the upper left corner of the picture."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height


@dataclass(frozen=True)
class _Text:
    x: float
    y: float
    words: str
    size: float
    color: Color
    anchor: str
    bold: bool = False
    upright: bool = False
    halo: Color | None = None


@dataclass
class Canvas:
    """RGB picture of WIDTH x HEIGHT. Coordinates are pixels of the finished picture from its upper left corner."""

    raster: npt.NDArray[np.uint32] = field(
        default_factory=lambda: np.full(
            (HEIGHT * OVERSAMPLE, WIDTH * OVERSAMPLE), packed(np.array(BACKGROUND, dtype=np.uint8)), dtype=np.uint32
        )
    )
    texts: list[_Text] = field(default_factory=list)

    def pixels(self, box: Box) -> npt.NDArray[np.uint32]:
        """The panel's part of the raster, OVERSAMPLE times as large as the panel, to be painted in place."""
        rows = slice(box.top * OVERSAMPLE, box.bottom * OVERSAMPLE)
        return self.raster[rows, box.left * OVERSAMPLE : box.right * OVERSAMPLE]

    def bar(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """A filled rectangle; no thinner than half a pixel."""
        left, top = round(x * OVERSAMPLE), round(y * OVERSAMPLE)
        right, bottom = (
            max(low + 1, round((start + extent) * OVERSAMPLE))
            for low, start, extent in ((left, x, width), (top, y, height))
        )
        self.raster[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = packed(
            np.array(color, dtype=np.uint8)
        )

    def swatch(self, x: int, y: int, size: int, color: Color) -> None:
        """A square with round corners."""
        n, radius = size * OVERSAMPLE, size * OVERSAMPLE / 4
        # How far each pixel's middle lies within the edge's bands, across and down.
        depth = np.maximum(radius - np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5), 0)
        inside = np.hypot(depth[:, None], depth) <= radius
        self.pixels(Box(x, y, size, size))[inside] = packed(np.array(color, dtype=np.uint8))

    def frame(self, box: Box, color: Color) -> None:
        """Lines of one pixel around a panel."""
        self.bar(box.left, box.top, box.width, 1, color)
        self.bar(box.left, box.bottom - 1, box.width, 1, color)
        self.bar(box.left, box.top, 1, box.height, color)
        self.bar(box.right - 1, box.top, 1, box.height, color)

    def text(self, x: float, y: float, words: str, size: float, color: Color, anchor: str = "ls", **style: Any) -> None:
        """Words at a place that `anchor` gives the meaning of, as Pillow spells it. Text lies on top of all shapes.

        style: bold, upright (turned left), halo (a colour around the letters).
        """
        self.texts.append(_Text(x, y, words, size, color, anchor, **style))

    def finish(self) -> npt.NDArray[np.uint8]:
        """The picture, uint8 [HEIGHT, WIDTH, 3]."""
        from PIL import Image, ImageDraw

        large = Image.frombuffer("RGBX", self.raster.shape[::-1], self.raster, "raw", "RGBX", 0, 1)
        image = large.reduce(OVERSAMPLE).convert("RGB")
        draw = ImageDraw.Draw(image)
        for text in self.texts:
            font = find_font(text.size, text.bold)
            words = printable(text.words, font)
            if not text.upright:
                edge: dict[str, Any] = {} if text.halo is None else {"stroke_width": 2, "stroke_fill": text.halo}
                draw.text((text.x, text.y), words, fill=text.color, font=font, anchor=text.anchor, **edge)
                continue
            left, top, right, bottom = (round(edge) for edge in font.getbbox(words))
            mask = Image.new("L", (right - left + 2, bottom - top + 2))
            ImageDraw.Draw(mask).text((1 - left, 1 - top), words, fill=255, font=font)
            turned = mask.transpose(Image.Transpose.ROTATE_90)
            place = (round(text.x - turned.width / 2), round(text.y - turned.height / 2))
            image.paste(text.color, (*place, place[0] + turned.width, place[1] + turned.height), turned)
        return np.array(image)


@functools.cache
def find_font(size: float, bold: bool = False) -> FreeTypeFont | BitmapFont:
    """DejaVu Sans, which matplotlib brings and many systems have, for its many letters; else Pillow's own font."""
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    # Found, not imported: matplotlib takes longer to load than a picture to draw.
    matplotlib = importlib.util.find_spec("matplotlib")
    places = [] if matplotlib is None or matplotlib.origin is None else [Path(matplotlib.origin).parent]
    for path in (*(str(place / "mpl-data" / "fonts" / "ttf" / name) for place in places), name):
        try:
            return ImageFont.truetype(path, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def printable(words: str, font: FreeTypeFont | BitmapFont) -> str:
    """The words in letters that the font has: Pillow's own font knows no dashes but the hyphen."""
    words = "".join(letter if letter.isprintable() else " " for letter in words)
    if getattr(font, "getname", lambda: ("",))()[0] == "DejaVu Sans":
        return words
    return words.replace("–", "-").replace("−", "-")


def fit(words: str, size: float, width: float, bold: bool = False) -> str:
    """The words, cut and ended with "…" where they are longer than `width` pixels."""
    font = find_font(size, bold)
    if font.getlength(words[:1000]) <= width and len(words) <= 1000:
        return words
    low, high = 0, min(len(words), 1000)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(words[:middle] + "…") <= width else (low, middle - 1)
    return words[:low] + "…"


def mix(color: Color, share: float, under: Color = BACKGROUND) -> Color:
    """A colour laid over another one with an opacity of `share`."""
    return tuple(round(share * a + (1 - share) * b) for a, b in zip(color, under))  # type: ignore[return-value]
