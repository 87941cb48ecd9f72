"""The language part of the demonstration: real texts of uneven length, padded, packed and pruned."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nlp
from nlp.picture import draw_survivors
from nlp.prune import Cascade, Merge
from nlp.texts.embedder import pool
from trisparse.data import data_folder
from trisparse.demo.comparison import one_setting
from trisparse.demo.passages import passages
from trisparse.progress import compiling

NETWORK = "all-minilm-l6-v2"
# Texts of a batch. Sorted ones get small batches: with so few texts, large ones would still hold much padding.
BATCH, SORTED_BATCH = 32, 8
# Tokens of the longest text, where the network does not say.
LONGEST = 256
KEEP, KEEP_SHOWN = 0.5, 0.4
# Every way runs so often, in turn; when the time is up, no further round begins, but there are two at least.
ROUNDS, SECONDS = 5, 12.0
# Texts of a quick demonstration.
QUICK_TEXTS = 48
# The lowest mean cosine to the dense embeddings with which a row counts as right; what pruning loses is its price.
LOSSLESS, ROUNDED, PRUNED = 0.99999, 0.999, 0.9
HEADER = ("way", "numbers", "tokens/s", "speed-up", "padding", "kept", "cosine", "same neighbour")

Batches = Sequence[tuple[list[int], dict[str, Tensor]]]


@dataclass
class Row:
    """One way to embed all texts. Times are CPU seconds.

    Attributes:
        model: the network, None when the row is finished.
        batches: positions and padded inputs.
        least: mean cosine to the dense embeddings below which the row counts as wrong.
        padding: share of the positions computed in the first layer that hold no token.
        kept: share of the tokens alive at the end.
        cosine: to the dense embeddings, mean.
        neighbours: share of texts whose nearest other text is that of the dense embeddings.
    """

    way: str
    numbers: str
    model: Any
    batches: Batches
    padding: float
    least: float
    seconds: list[float] = field(default_factory=list)
    median: float = 0.0
    tokens_per_second: float = 0.0
    speedup: float | None = None
    kept: float = 1.0
    cosine: float | None = None
    neighbours: float | None = None
    agrees: bool = True

    def cells(self) -> list[str]:
        """Under HEADER."""
        cosine = "" if self.cosine is None else f"{self.cosine:.4f}" if self.agrees else f"WRONG: {self.cosine:.4f}"
        return [
            self.way,
            self.numbers,
            f"{self.tokens_per_second:,.0f}",
            "" if self.speedup is None else f"{self.speedup:.1f}×",
            f"{self.padding:.0%}",
            f"{self.kept:.0%}",
            cosine,
            "" if self.neighbours is None else f"{self.neighbours:.0%}",
        ]


@dataclass(frozen=True)
class Language:
    """The finished part, and what is missing from it and why."""

    rows: list[Row]
    network: str
    caption: str
    finding: str
    pictures: list[Path]
    skipped: list[str]

    def cells(self) -> list[list[str]]:
        """All rows as texts, under HEADER."""
        return [row.cells() for row in self.rows]


@dataclass(frozen=True)
class _Texts:
    """Texts as ids, ready for a network: tokenising is the same work in every way."""

    tokenizer: Any
    ids: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    def batches(self, sort: bool) -> Batches:
        """Positions and padded inputs of batches, as the texts come or by length."""
        order = sorted(range(len(self.ids)), key=lambda i: -len(self.ids[i])) if sort else list(range(len(self.ids)))
        size = SORTED_BATCH if sort else BATCH
        chosen = [order[i : i + size] for i in range(0, len(order), size)]
        return [(places, self._padded(places)) for places in chosen]

    def _padded(self, places: Sequence[int]) -> dict[str, Tensor]:
        rows = {"input_ids": [self.ids[i] for i in places]}
        return dict(self.tokenizer.pad(rows, return_tensors="pt"))


def warm_up() -> None:
    """Compile, or load from disk, every kernel of this part."""
    try:
        model, tokenizer = nlp.load_pretrained(NETWORK), nlp.load_tokenizer(NETWORK)
    except (ImportError, ValueError):
        return
    texts = _Texts(tokenizer, tokenizer(["short", "much longer " * 40])["input_ids"])
    with torch.inference_mode():
        for row in _rows(model, texts)[0][2:]:
            _embed(row.model, row.batches)


def language(folder: Path, say: Callable[[str], None], quick: bool = False) -> Language:
    """Embed the texts in every way; pictures go to `folder`. A quick demonstration embeds fewer, in two rounds."""
    try:
        model, tokenizer = nlp.load_pretrained(NETWORK), nlp.load_tokenizer(NETWORK)
    except ImportError as error:
        return _without([f"language: {error}"])
    except ValueError as error:
        return _without([f"language: {error}, or pip install 'trisparse[texts]'"])
    longest = model.card.max_tokens or LONGEST
    found, skipped, shown = passages(tokenizer, longest, data_folder())
    if not found:
        return _without(skipped)
    if quick:
        found = found[:QUICK_TEXTS]
    texts = _Texts(tokenizer, tokenizer(found, verbose=False)["input_ids"])
    live = sum(texts.lengths)
    say(f"{len(found)} texts of {min(texts.lengths)} to {max(texts.lengths)} tokens, {live:,} together")
    rows, left_out = _rows(model, texts)
    skipped += left_out
    with torch.inference_mode(), one_setting(1):
        _measure(rows, live, texts, 0.0 if quick else SECONDS)
    pictures, left_out = _pictures(model, tokenizer, shown, folder)
    skipped += left_out
    sizes = sorted(texts.lengths)
    caption = (
        f"{len(found)} texts, sections of Python's own reference and single sentences, of {sizes[0]} to {sizes[-1]} "
        f"tokens, half of them below {sizes[len(sizes) // 2]}, in random order and batches of {BATCH} (sorted: "
        f"{SORTED_BATCH}). CPU time of the network alone on one thread, medians of rounds in turn. Dense is the "
        "Hugging Face network as its users run it, every text padded to the longest of its batch. Kept is the share "
        "of tokens alive in the last layer, cosine the mean over the texts of how near an embedding is to the dense "
        "one, same neighbour the share of texts whose most similar other text is still the same."
    )
    return Language(rows, NETWORK, caption, _finding(rows), pictures, skipped)


def _without(skipped: list[str]) -> Language:
    return Language([], NETWORK, "", "", [], skipped)


def _finding(rows: list[Row]) -> str:
    """What the table says, in plain words."""
    by_way = {(row.way, row.numbers): row for row in rows}
    packed, merged = by_way["packed", "fp32"], rows[-2]
    same = by_way["packed", merged.numbers]
    if not all(row.agrees for row in rows):
        return "Not every way gave the right embeddings; those that did not have no speed-up."
    gain = same.median / merged.median
    return (
        f"Of what the dense network computes, {rows[0].padding:.0%} is padding. Packed, it computes none, and with our "
        f"layers gives the same answers {packed.speedup:.1f} times as fast. Pruning is another matter: it "
        f"leaves texts below {Merge().min_tokens} tokens alone, and of the longer ones each layer reads fewer tokens "
        f"than the one before. Merged to {KEEP:.0%} that is {gain:.2f} times the speed of packing alone, and it costs: "
        f"{1 - (merged.neighbours or 0):.0%} of the texts get another nearest neighbour. It pays for long texts and "
        "where such a loss is bearable; the pictures show what is lost."
    )


def _rows(model: Any, texts: _Texts) -> tuple[list[Row], list[str]]:
    arrival, by_length = texts.batches(sort=False), texts.batches(sort=True)
    padding, sorted_padding = _padding(arrival), _padding(by_length)
    half = nlp.accelerate(model, dtype="auto")
    fast = half.acceleration.dtype == torch.bfloat16
    rows = [
        Row("dense", "fp32", model, arrival, padding, 0.0),
        Row("dense, sorted by length", "fp32", model, by_length, sorted_padding, LOSSLESS),
        Row("packed", "fp32", nlp.accelerate(model), arrival, 0.0, LOSSLESS),
    ]
    numbers = "fp32"
    skipped = []
    if fast:
        numbers = "bf16"
        rows.append(Row("packed", numbers, half, arrival, 0.0, ROUNDED))
    else:
        skipped.append("language in bf16: this processor does not multiply it, fp32 is faster here")
    for name, policy in ((f"merged to {KEEP:.0%}", Merge(KEEP)), (f"dropped to {KEEP:.0%}", Cascade(KEEP))):
        pruned = nlp.accelerate(model, prune=policy, dtype="auto")
        rows.append(Row(f"packed, {name}", numbers, pruned, arrival, 0.0, PRUNED))
    return rows, skipped


def _padding(batches: Batches) -> float:
    masks = [inputs["attention_mask"] for _, inputs in batches]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def _embed(model: Any, batches: Batches) -> tuple[Tensor, float]:
    """All texts' means over their tokens, [N, H] in their order, and the share of tokens alive at the end."""
    places: list[int] = []
    pooled, alive, n = [], 0, 0
    for positions, inputs in batches:
        vectors, kept = pool(model(**inputs), inputs["attention_mask"], "mean")
        places += positions
        pooled.append(vectors)
        alive, n = alive + int(kept.sum()), n + int(inputs["attention_mask"].sum())
    found = torch.cat(pooled)
    return torch.empty_like(found).index_copy(0, torch.tensor(places), found), alive / n


def _measure(rows: list[Row], live: int, texts: _Texts, limit: float) -> None:
    """Time the rows in turn for `limit` seconds or two rounds, then judge each by the first."""
    with compiling():
        few = _Texts(texts.tokenizer, texts.ids[:4]).batches(sort=False)
        for row in rows:
            _embed(row.model, few)
    results: list[tuple[Tensor, float]] = []
    start = time.perf_counter()
    for i in range(ROUNDS):
        if i >= 2 and time.perf_counter() - start > limit:
            break
        results = []
        for row in rows:
            begin = time.process_time()
            results.append(_embed(row.model, row.batches))
            row.seconds.append(time.process_time() - begin)
    dense = torch.nn.functional.normalize(results[0][0].double(), dim=1)
    for row, (pooled, kept) in zip(rows, results):
        row.model, row.batches = None, ()
        row.median = statistics.median(row.seconds)
        row.tokens_per_second, row.kept = live / row.median, kept
        if row is rows[0]:
            continue
        found = torch.nn.functional.normalize(pooled.double(), dim=1)
        row.cosine = float((found * dense).sum(1).mean())
        row.neighbours = float((_nearest(found) == _nearest(dense)).double().mean())
        row.agrees = row.cosine >= row.least  # false for NaN
        if row.agrees:
            row.speedup = rows[0].median / row.median


def _nearest(vectors: Tensor) -> Tensor:
    """[N] int64: the most similar other row of each row of [N, H]."""
    return (vectors @ vectors.T).fill_diagonal_(-float("inf")).argmax(1)


def _pictures(model: Any, tokenizer: Any, text: str, folder: Path) -> tuple[list[Path], list[str]]:
    """What is dropped and what is merged of one paragraph."""
    if not text:
        return [], ["the pictures of pruned text: no paragraph of plain prose in this Python's reference"]
    wanted = (
        ("dropped.png", Cascade(KEEP_SHOWN), "Dropped: the tokens that receive least attention"),
        ("merged.png", Merge(KEEP_SHOWN), "Merged: the most similar tokens become one"),
    )
    for name, policy, title in wanted:
        draw_survivors(nlp.accelerate(model, prune=policy), tokenizer, text, folder / name, title=title)
    return [folder / name for name, _, _ in wanted], []
