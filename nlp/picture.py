"""A picture of what pruning does to a text: which tokens each layer still reads, and which stand for others."""

from __future__ import annotations

import colorsys
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common_models.files import replace_atomically
from nlp.accelerate import Acceleration
from nlp.packing.architectures import parts_of
from nlp.packing.passes import in_flight
from nlp.prune.removal import Removal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BACKGROUND, _PANEL, _TEXT, _FAINT, _GHOST = "#0e1116", "#1b222b", "#e6e9ee", "#8d97a5", "#6b7684"
# Hue, lightness, saturation. A token fades the more, the earlier it leaves; one that stays to the end is light.
_FIRST_LEFT, _LAST_LEFT, _STAYED = (0.66, 0.25, 0.32), (0.50, 0.40, 0.56), "#ffd166"
_INK, _ALONE = "#10141a", "#566171"
_GROUPS = ("#ffd166", "#4ecb71", "#5fa8ff", "#ff7a7a", "#c8a2ff", "#3fc6c6", "#ff9f4a", "#f78fd0")
# Pixels.
_WIDTH, _MARGIN, _SIZE, _LINE, _DPI = 1600, 56, 25, 46, 100
_STRIP_ROW, _STRIP_LEFT, _STRIP_RIGHT = 26, 130, 250


def survivors(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Which token stands for each token in each layer, int64 [L, B, S].

    The number is a column: a token's own while it is alive, the column of the one it was merged into, or -1 where it
    was dropped and at padding.

    Args:
        model: from `nlp.accelerate`.
        batch: input_ids [B, S], attention_mask [B, S], whatever else the model takes.

    Raises:
        TypeError: a model that is not accelerated.
        ValueError: a batch without ids, or one that cannot be pruned.
    """
    made = getattr(model, "acceleration", None)
    if not isinstance(made, Acceleration):
        raise TypeError(f"model must be accelerated (nlp.accelerate), got {type(model).__name__}")
    if "input_ids" not in batch:
        raise ValueError(f"batch must hold input_ids, got {', '.join(batch) or 'nothing'}")
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids)).bool()
    own = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).masked_fill(~mask, -1)
    parts = parts_of(model)
    if made.prune is None:
        return own.expand(parts.n_calls, *own.shape).clone()
    found: list[Tensor] = []

    def look(layer: Any, args: Any) -> None:
        running = in_flight()
        if running is None or running.removal is None:
            found.append(own)
            return
        standing = _standing(running.removal, len(running.index))
        found.append(torch.full_like(own, -1).flatten().index_copy(0, running.index, standing).view_as(own))

    # Called after the network's own hooks, which take the tokens out.
    handles = [layer.register_forward_pre_hook(look) for layer in parts.layers]
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)


def _standing(removal: Removal, n: int) -> Tensor:
    """[n] int64: the column that stands for each of the n tokens of a pass now, -1 for none."""
    alive = removal.columns()
    if removal.origin is None:
        return alive
    if removal.sizes is None:
        return alive.new_full((n,), -1).index_copy(0, removal.origin, alive)
    # Merged: what one living token has, every token of its group gets.
    columns, _ = removal.finished(alive.double()[:, None])
    return columns[:, 0].long()


def draw_survivors(
    model: Any, tokenizer: Any, text: str, path: str | os.PathLike[str], *, title: str | None = None
) -> None:
    """Draw a text as a pruned network reads it, into a picture (PNG, SVG or PDF by its name).

    Above, the text, each token in the colour of the layer that no longer read it; where tokens are merged, the largest
    groups in colours of their own instead. Below, one row for each layer with a mark for every token it read.

    Args:
        model: from `nlp.accelerate` with a policy.
        tokenizer: the model's fast tokenizer. A text longer than it allows is cut.

    Raises:
        TypeError: a model that is not accelerated, or text that is not a str.
        ValueError: a text without tokens.
        ImportError: matplotlib is missing.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("drawing survivors needs matplotlib: pip install 'trisparse[nlp]'") from error
    coded = tokenizer([text], truncation=True, return_offsets_mapping=True, return_tensors="pt")
    spans = coded.pop("offset_mapping")[0].tolist()
    place = [i for i, (start, stop) in enumerate(spans) if start < stop]
    if not place:
        raise ValueError(f"text must have tokens to be drawn, got {text[:40]!r}")
    found = survivors(model, {name: value.to(model.device) for name, value in coded.items()})[:, 0].cpu()
    _draw(text, spans, found, Path(path), title or "What each layer still reads")


@dataclass(frozen=True)
class _Piece:
    """A token, or what lies between two, at its place in the picture; `token` is -1 between tokens."""

    text: str
    token: int
    x: float
    line: int
    width: float


def _draw(text: str, spans: Sequence[Sequence[int]], standing: Tensor, path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, n = standing.shape
    own = torch.arange(n)
    alive = standing == own
    read = alive.sum(0).tolist()  # layers that read each token
    merges = bool(((standing >= 0) & ~alive).any())
    pieces, lines = _laid_out(text, spans)
    groups = _groups(standing[-1], spans, text) if merges else []
    key = 1 + (len(groups) + 1) // 2
    body = 128
    strip = body + lines * _LINE + 38 + 34 * key + 14
    height = strip + layers * _STRIP_ROW + 52
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), facecolor=_BACKGROUND)
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(height, 0)
    axes.axis("off")
    write = _writer(axes)
    write(_MARGIN, 46, title, 26, _TEXT, weight="bold")
    left = "merged into others" if merges else "dropped"
    ends = int(alive[-1].sum())
    write(
        _MARGIN, 84,
        f"{n} tokens with the special ones; the last of {layers} layers reads {ends}, {n - ends} were {left} before it",
        17, _FAINT,
    )  # fmt: skip

    colors = [_shade(count, layers) for count in read]
    chips = dict(enumerate(colors))
    inks = {i: _INK if count == layers else _ink(count, layers) for i, count in enumerate(read)}
    if merges:
        chips = dict.fromkeys(range(n), _PANEL)
        inks = dict.fromkeys(range(n), _TEXT)
        for color, (stands, _) in zip(_GROUPS, groups):
            for i in (standing[-1] == stands).nonzero()[:, 0].tolist():
                chips[i], inks[i] = color, _INK
    for piece in pieces:
        y = body + piece.line * _LINE
        if piece.token >= 0:
            _box(axes, piece.x, y, piece.width, _LINE - 8, chips[piece.token])
            write(piece.x, y + _LINE / 2 - 4, piece.text, _SIZE, inks[piece.token])
        else:
            write(piece.x, y + _LINE / 2 - 4, piece.text, _SIZE, _GHOST)

    y = body + lines * _LINE + 34
    if merges:
        about = (
            "The largest groups, each of which is one token in the last layer; grey ones are alone or in smaller groups"
        )
        write(_MARGIN, y, about, 17, _FAINT)
        for i, (color, (_, members)) in enumerate(zip(_GROUPS, groups)):
            x, row = _MARGIN + (i % 2) * (_WIDTH - 2 * _MARGIN) / 2, y + 34 * (1 + i // 2)
            _box(axes, x, row - 11, 22, 22, color)
            write(x + 36, row, members, 18, _TEXT)
    else:
        x = float(_MARGIN)
        for count in range(1, layers + 1):
            if count < layers and count not in read:
                continue
            label = "read by all layers" if count == layers else f"read by {count}" + (" layer" if count == 1 else "")
            _box(axes, x, y - 11, 22, 22, _shade(count, layers))
            write(x + 32, y, label, 17, _TEXT)
            x += 32 + 11 * len(label) + 26
    _strip(axes, strip, alive, {i: _ALONE if chip == _PANEL else chip for i, chip in chips.items()}, write)
    with replace_atomically(path) as partial:
        figure.savefig(partial, format=path.suffix[1:] or "png")


def _laid_out(text: str, spans: Sequence[Sequence[int]]) -> tuple[list[_Piece], int]:
    """Tokens and what is between them, broken into lines between words; and the number of lines."""
    order = sorted((i for i, (a, b) in enumerate(spans) if a < b), key=lambda i: spans[i][0])
    units: list[tuple[str, int]] = []
    at = spans[order[0]][0]
    for i in order:
        start, stop = max(spans[i][0], at), spans[i][1]
        if at < start:
            units.append((text[at:start], -1))
        # Some tokenizers count the space before a word to it.
        word = text[start:stop]
        if word[:1].isspace():
            units.append((" ", -1))
        units.append((word.strip(), i))
        at = max(at, stop)
    measure = _measure()
    space = measure("n n") - measure("nn")
    pieces: list[_Piece] = []
    x, line = 0.0, 0
    width = _WIDTH - 2 * _MARGIN
    for run in _words(units):
        length = sum(measure(part) for part, _ in run)
        if x and x + length > width:
            x, line = 0.0, line + 1
        for part, token in _cut(run, measure, width):
            taken = measure(part)
            if x and x + taken > width:  # a word longer than a line
                x, line = 0.0, line + 1
            pieces.append(_Piece(part, token, _MARGIN + x, line, taken))
            x += taken
        x += space
    return pieces, line + 1


def _words(units: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Runs of units without white space between them."""
    word: list[tuple[str, int]] = []
    for text, token in units:
        parts = re.split(r"\s+", text) if token < 0 else [text]
        for i, part in enumerate(parts):
            if i and word:
                yield word
                word = []
            if part:
                word.append((part, token))
    if word:
        yield word


def _cut(run: Sequence[tuple[str, int]], measure: Any, width: float) -> Iterator[tuple[str, int]]:
    """The same units, those that are longer than a line in parts: an unknown word is one token, however long."""
    for text, token in run:
        while len(text) > 1 and (taken := measure(text)) > width:
            fitting = max(int(len(text) * width / taken), 1)
            while fitting > 1 and measure(text[:fitting]) > width:
                fitting -= 1
            yield text[:fitting], token
            text = text[fitting:]
        yield text, token


def _measure() -> Any:
    """A function that tells how many pixels wide a text is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=_SIZE * 72 / _DPI)
    renderer = FigureCanvasAgg(Figure(dpi=_DPI)).get_renderer()
    return lambda text: float(renderer.get_text_width_height_descent(text, font, ismath=False)[0])


def _writer(axes: Axes) -> Any:
    def write(x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
        axes.text(x, y, text, color=color, fontsize=size * 72 / _DPI, va="center_baseline", parse_math=False, **style)

    return write


def _box(axes: Axes, x: float, y: float, width: float, height: float, color: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=4", fc=color, ec=_BACKGROUND)
    axes.add_patch(shape)


def _shade(count: int, layers: int) -> Any:
    """The colour of a token that so many of the layers read."""
    if count == layers:
        return _STAYED
    part = (count - 1) / max(layers - 2, 1)
    return colorsys.hls_to_rgb(*(a + (b - a) * part for a, b in zip(_FIRST_LEFT, _LAST_LEFT)))


def _ink(count: int, layers: int) -> str:
    """The colour of the letters on `_shade` of a token that left."""
    return f"{0.62 + 0.36 * (count - 1) / max(layers - 2, 1):.2f}"


def _groups(standing: Tensor, spans: Sequence[Sequence[int]], text: str) -> list[tuple[int, str]]:
    """The largest groups: the column that stands for each, and its members as a text."""
    sizes = Counter(column for column in standing.tolist() if column >= 0)
    found = []
    for column, size in sizes.most_common(len(_GROUPS)):
        if size < 2:
            break
        members = (standing == column).nonzero()[:, 0].tolist()
        words = Counter(text[slice(*spans[i])].strip() for i in members if spans[i][0] < spans[i][1])
        named = [word if count == 1 else f"{word} ×{count}" for word, count in words.items()]
        found.append((column, _shortened("   ".join(named))))
    return found


def _shortened(members: str, longest: int = 70) -> str:
    return members if len(members) <= longest else f"{members[: longest - 2]} …"


def _strip(axes: Axes, top: float, alive: Tensor, colors: Mapping[int, Any], write: Any) -> None:
    """One row for each layer, a mark for every token it reads."""
    layers, n = alive.shape
    left, right = _MARGIN + _STRIP_LEFT, _WIDTH - _MARGIN - _STRIP_RIGHT
    cell = (right - left) / n
    for layer in range(layers):
        y = top + layer * _STRIP_ROW
        count = int(alive[layer].sum())
        write(_MARGIN, y + _STRIP_ROW / 2, f"layer {layer + 1}", 17, _TEXT)
        write(right + 24, y + _STRIP_ROW / 2, f"{count} of {n} tokens, {count / n:.0%}", 17, _TEXT)
        marks = [(left + i * cell, max(cell * 0.82, 0.6)) for i in range(n)]
        axes.broken_barh(marks, (y + 3, _STRIP_ROW - 6), facecolors=_PANEL, linewidth=0)
        chosen = alive[layer].nonzero()[:, 0].tolist()
        axes.broken_barh(
            [marks[i] for i in chosen], (y + 3, _STRIP_ROW - 6), facecolors=[colors[i] for i in chosen], linewidth=0
        )
