"""Texts to measure or train on, as token ids, and the batches they go through in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlp.pretrained import load_tokenizer
from nlp.pretrained.cards import ModelCard
from nlp.texts.embedder import POOLING
from nlp.texts.packer import Packer
from nlp.texts.tokens import Cutter, check_vocabulary, length_limit, pad_token


@dataclass(frozen=True)
class Sample:
    """Tokenised texts.

    Attributes:
        ids: token ids of each, special tokens included.
        pad: what fills the columns that the mask hides.
    """

    ids: Sequence[list[int]] = field(repr=False)
    pad: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        return [len(one) for one in self.ids]

    def batches(self, positions: Sequence[int], max_tokens: int) -> list[list[int]]:
        """The positions in groups of similar length, of at most `max_tokens` tokens with padding."""
        groups = Packer(max_tokens, look_ahead=max(len(positions), 1), padded=True).batches(
            positions, length=lambda position: len(self.ids[position])
        )
        return [[position for _, position in group] for group in groups]

    def padded(self, positions: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask of some texts, int64 [B, S], padded on the right."""
        longest = max(len(self.ids[i]) for i in positions)
        ids = torch.full((len(positions), longest), self.pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(positions):
            ids[row, : len(self.ids[i])] = torch.tensor(self.ids[i])
            mask[row, : len(self.ids[i])] = 1
        return ids.to(device), mask.to(device)

    def digest(self) -> str:
        """A fingerprint of the ids."""
        found = hashlib.sha256()
        for one in self.ids:
            found.update(len(one).to_bytes(8, "little"))
            found.update(np.asarray(one, dtype=np.int64).tobytes())
        return found.hexdigest()


def read(model: Any, texts: Iterable[str], tokenizer: Any, max_length: int | None) -> Sample:
    """The texts as the network reads them, with its card's prompt and case, cut at its limit or at `max_length`.

    Args:
        tokenizer: of the network; None for the one that belongs to a network of `nlp.load_pretrained`.

    Raises:
        TypeError: `texts` is a single text, or a text is not a str.
        ValueError: no tokenizer is known, or it is not the network's; a text that is not Unicode, a `max_length` that
            the network does not allow.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"texts must be an iterable of str, got a {type(texts).__name__}: wrap it in a list")
    card = card_of(model)
    if tokenizer is None:
        if card is None:
            raise ValueError("tokenizer must be given: only a network of nlp.load_pretrained knows its own")
        tokenizer = load_tokenizer(card.name)
    cutter = Cutter(
        tokenizer,
        length_limit(model, tokenizer, max_length),
        "truncate",
        prompt="" if card is None else card.prompt,
        lowercase=card is not None and card.lowercase,
    )
    check_vocabulary(cutter, model)
    return Sample([window.ids for window in cutter.windows(texts)], pad_token(model, tokenizer))


def card_of(model: Any) -> ModelCard | None:
    """The card that `load_pretrained` gave to a network."""
    card = getattr(model, "card", None)
    return card if isinstance(card, ModelCard) else None


def pooling_of(model: Any, pooling: str | None) -> str:
    """How outputs become one embedding: as asked for, else what the network's card says, else the mean.

    Raises:
        ValueError: a pooling that is not known.
    """
    card = card_of(model)
    chosen = pooling or (card.pooling if card is not None and card.pooling else "mean")
    if chosen not in POOLING:
        raise ValueError(f"pooling must be one of {', '.join(POOLING)}, got {chosen!r}")
    return chosen


def classifies(model: Any) -> bool:
    """Whether a network answers with one row of logits per text."""
    return type(model).__name__.endswith("ForSequenceClassification")


def task_of(model: Any, pooling: str) -> str:
    """What `accelerate` must be told that the outputs are for."""
    if hasattr(model, "base_model") and model.base_model is not model:
        return "auto"
    return "pool" if pooling == "mean" else "cls"
