"""The page that the demonstration leaves behind."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common_models.files import replace_atomically
from pointcloud.picture import class_colors
from pointcloud.pretrained import ModelCard
from trisparse.demo.comparison import HEADER, Comparison
from trisparse.demo.language import Language
from trisparse.demo.scenes import Labelled
from trisparse.demo.videos import Videos


@dataclass(frozen=True)
class Page:
    """Everything the page says."""

    scenes: Sequence[Labelled]
    comparison: Comparison | None
    videos: Videos
    language: Language
    card: ModelCard
    model: str
    unlabelled: str
    dtype: str
    threads: int
    skipped: Sequence[str]
    cpu: str
    features: Sequence[str]
    gpu: str | None
    load: float | None
    versions: Mapping[str, str]
    written: str


def write_page(page: Page, path: Path) -> Path:
    """One HTML file that holds its pictures. It appears whole or not at all."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("the demonstration's page needs jinja2: pip install jinja2") from error
    environment = Environment(
        loader=PackageLoader("trisparse.demo", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = _embedded
    names = page.card.class_names
    colors = {name: f"#{color.tobytes().hex()}" for name, color in zip(names, class_colors(names))}
    groups = _groups(page.comparison) if page.comparison is not None else []
    text = environment.get_template("report.html.jinja").render(page=page, colors=colors, groups=groups, header=HEADER)
    with replace_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _groups(comparison: Comparison) -> list[dict[str, object]]:
    """The table's rows by operation, each with the length of its bar in percent."""
    groups: dict[str, list[dict[str, object]]] = {}
    for row, cells in zip(comparison.rows, comparison.cells()):
        longest = max(other.median for other in comparison.rows if other.operation == row.operation)
        line = {"cells": cells[1:], "bar": 100 * row.median / longest if longest else 0.0, "row": row}
        groups.setdefault(row.operation, []).append(line)
    return [{"operation": operation, "lines": lines} for operation, lines in groups.items()]


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
