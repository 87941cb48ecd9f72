"""Real English that every Python has: the language reference of `help()` and the standard library's docstrings."""

from __future__ import annotations

import ast
import hashlib
import pydoc
import warnings
import zlib
from pathlib import Path
from pydoc_data.topics import topics

# Not documentation, or not the standard library's.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
SHORTEST_DOCSTRING = 100  # characters
SHORTEST_PARAGRAPH = 40
HELD_OUT_SHARE = 5  # one topic in so many


def held_out_texts() -> list[str]:
    """The topics that no training sees, in the order of their names.

    Topics quote each other: of what several of them share, the held-out one keeps it.
    """
    return [topics[name].strip() for name in sorted(topics) if _is_held_out(name)]


def training_texts() -> list[str]:
    """All other topics, then the docstrings of all modules, file by file; without the paragraphs that are held out."""
    held = {paragraph for text in held_out_texts() for paragraph in _paragraphs(text)}
    texts = [topics[name].strip() for name in sorted(topics) if not _is_held_out(name)]
    root = Path(pydoc.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts):
            texts.extend(_docstrings(path))
    seen: set[str] = set()
    kept = []
    for text in texts:
        # What is said word for word in several places is shown once.
        fresh = [part for part in text.split("\n\n") if _plain(part) not in held and _plain(part) not in seen]
        seen.update(_paragraphs(text))
        text = "\n\n".join(fresh).strip()
        if len(text) >= SHORTEST_DOCSTRING:
            kept.append(text)
    return kept


def digest(texts: list[str]) -> str:
    """SHA-256 of the texts: they differ between versions of Python."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _is_held_out(topic: str) -> bool:
    return zlib.crc32(topic.encode()) % HELD_OUT_SHARE == 0


def _plain(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _paragraphs(text: str) -> list[str]:
    """Those long enough that their second appearance is a quotation."""
    return [plain for plain in map(_plain, text.split("\n\n")) if len(plain) >= SHORTEST_PARAGRAPH]


def _docstrings(path: Path) -> list[str]:
    """Of a source file, the module's own first, in the order of the source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in others' strings
            tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError, OSError):
        return []  # templates and files of other encodings
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None and len(text) >= SHORTEST_DOCSTRING:
                found.append((getattr(node, "lineno", 0), text))
    return [text for _, text in sorted(found, key=lambda pair: pair[0])]
