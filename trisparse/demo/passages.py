"""The texts of the language part: sections of Python's own reference, and short sentences where they are at hand."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

SENTENCES = "nlp/sst2/dev.tsv"
N_SECTIONS, N_SENTENCES = 64, 64
# Of the text in the pictures, in characters; enough to be pruned, few enough to be read.
SHOWN = (480, 640)


def passages(tokenizer: object, longest: int, data: Path) -> tuple[list[str], list[str], str]:
    """Texts of very uneven length as they might arrive, what was left out and why, and a text to show.

    Args:
        tokenizer: of transformers, it decides how long a text is.
        longest: tokens of the longest text, special ones included; longer sections are not taken.
        data: folder of real data.
    """
    topics = _topics()
    if not topics:
        return [], ["language: this Python comes without its reference (pydoc_data.topics), the texts of this part"], ""
    texts = _evenly(_fitting(tokenizer, list(_sections(topics)), longest), N_SECTIONS)
    skipped = []
    try:
        lines = (data / SENTENCES).read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, UnicodeDecodeError) as error:
        skipped.append(f"short sentences: {error}; set TRISPARSE_DATA to the folder that holds {SENTENCES}")
        lines = []
    sentences = [line.split("\t")[0].strip() for line in lines]
    texts += _evenly([sentence for sentence in sentences if sentence], N_SENTENCES)
    random.Random(0).shuffle(texts)
    return texts, skipped, _shown(topics)


def _topics() -> dict[str, str]:
    try:
        return importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some systems ship Python in parts
        return {}


def _sections(topics: dict[str, str]) -> Iterator[str]:
    """Every section once; several topics hold the same ones."""
    seen = set()
    for _, text in sorted(topics.items()):
        for section in re.split(r"\n(?=[^\n]+\n[*=~\-^]{4,}\n)", text):
            plain = " ".join(re.sub(r"\n[*=~\-^]{4,}\n", ". ", section).split())
            if plain and plain not in seen:
                seen.add(plain)
                yield plain


def _fitting(tokenizer: object, texts: list[str], longest: int) -> list[str]:
    # A token takes a character at least; words that a tokenizer does not know may be one token.
    counts = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]  # type: ignore[operator]
    return [text for text, count in zip(texts, counts) if count <= longest]


def _evenly(texts: list[str], n: int) -> list[str]:
    """At most n of the texts, at even distances."""
    return [texts[i * len(texts) // n] for i in range(n)] if len(texts) > n else texts


def _shown(topics: dict[str, str]) -> str:
    """A paragraph of plain prose, without code."""
    first = [topics.get("execmodel", ""), *topics.values()]
    paragraphs = (" ".join(part.split()) for text in first for part in re.split(r"\n\s*\n", text))
    fitting = (part for part in paragraphs if SHOWN[0] <= len(part) <= SHOWN[1] and part[0].isalpha())
    return next((part for part in fitting if not re.search(r"[\"“*_=<>\[\]]", part)), "")
