"""Embed texts."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common_models import dtypes
from common_models.errors import ArgumentError
from common_models.modes import check_evaluating
from common_models.threads import set_threads
from nlp.accelerate import accelerate
from nlp.packing.architectures import parts_of
from nlp.pretrained import load_pretrained, load_tokenizer
from nlp.pretrained.cards import ModelCard
from nlp.prune.policy import Policy
from nlp.prune.pooling import has_state, mean_pool
from nlp.texts.tokens import Cutter, Window, check_vocabulary, length_limit, pad_token, padded, stream

POOLING = ("mean", "cls", "last")


@dataclass(frozen=True)
class Embedding:
    """The embedding of one text.

    Attributes:
        vector: float32 [H].
        tokens: tokens that the network saw, special tokens included.
        truncated: tokens of the text that it did not see, 0 unless overflow is "truncate".
        kept: tokens that were left at the end, fewer than `tokens` where the network prunes.
    """

    vector: np.ndarray
    tokens: int
    truncated: int
    kept: int


class Embedder:
    """Embeds texts with a transformers model, accelerated (`nlp.accelerate`) or not.

    Texts go through in batches of similar lengths; the results come in order and do not depend on the batches. Equal
    to sentence-transformers' `encode` for the models that both load.

    Args:
        model: with `last_hidden_state` [B, S, H] in its output.
        tokenizer: its fast tokenizer.
        pooling: "mean" over the tokens (those that are left where the network prunes), "cls" (the first) or "last".
        normalize: divide each embedding by its Euclidean length.
        max_length: tokens of the longest input, special tokens included; by default what card, tokenizer and
            positions of the model allow.
        overflow: longer texts are cut ("truncate", counted in `truncated`), or "split" into windows of `max_length`
            whose pooled outputs are averaged, weighted by their tokens, before the normalisation; or an "error".
        max_tokens: tokens of a batch.
        prompt: prefix of every text.
        lowercase: whether texts are lower-cased before they are tokenised.
        truncate_dim: how many of an embedding's numbers stay, the first ones, after the normalisation as in
            sentence-transformers; None for all. For networks that were trained to bear it (Matryoshka).

    Raises:
        ValueError: an argument outside of its range, or a tokenizer that is not the model's.

    Example:
        >>> import nlp
        >>> embedder = nlp.Embedder.load("all-minilm-l6-v2")
        >>> embedder.embed(["one text", "and a longer text"]).shape
        (2, 384)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pooling: str = "mean",
        normalize: bool = True,
        max_length: int | None = None,
        overflow: str = "truncate",
        max_tokens: int = 8192,
        prompt: str = "",
        lowercase: bool = False,
        truncate_dim: int | None = None,
    ) -> None:
        if pooling not in POOLING:
            raise ValueError(f"pooling must be one of {', '.join(POOLING)}, got {pooling!r}")
        if type(max_tokens) is not int or max_tokens < 1:
            raise ValueError(f"max_tokens must be a whole number of at least 1, got {max_tokens!r}")
        if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
            raise ArgumentError("truncate_dim", f"must be None or a whole number of at least 1, got {truncate_dim!r}")
        self.truncate_dim = truncate_dim
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.normalize, self.max_tokens = pooling, normalize, max_tokens
        self._cutter = Cutter(tokenizer, length_limit(model, tokenizer, max_length), overflow, prompt, lowercase)
        check_vocabulary(self._cutter, model)
        self._pad = pad_token(model, tokenizer)
        card = getattr(model, "card", None)
        self.card: ModelCard | None = card if isinstance(card, ModelCard) else None

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        threads: int | None = None,
        prune: Any = None,
        download: bool = False,
        **options: Any,
    ) -> Embedder:
        """An embedder from the names and folders that `load_pretrained` takes, its network accelerated.

        Pooling, normalisation, longest input, prompt and case are those of the model's files (mean and normalised
        where they say nothing).

        Args:
            dtype: see `nlp.accelerate`: None computes in the model's own, "auto" in the fastest.
            threads: that torch computes with, in the whole process; None leaves their number as it is.
            prune: a policy that removes tokens; None removes none.
            download: whether a model of the Hugging Face hub may be fetched.
            options: arguments of `Embedder` instead of those of the model's files.

        Raises:
            ValueError: no such model, or one whose steps this class does not know.
        """
        set_threads(threads)
        whole = load_pretrained(name_or_path, download=download)
        tokenizer = load_tokenizer(name_or_path, download=download)
        card: ModelCard = whole.card
        if card.steps:
            raise ValueError(f"{card.source}: steps after the pooling must be Normalize alone, got {card.steps[0]}")
        if whole.config.is_encoder_decoder:
            raise ValueError(f"{card.source}: an embedder needs an encoder or decoder alone, got {card.architecture}")
        pooling = card.pooling or "mean"
        if "pooling" not in options and pooling not in POOLING:
            raise ValueError(f"{card.source}: its pooling must be one of {', '.join(POOLING)}, got {pooling}")
        stated: dict[str, Any] = {
            "pooling": pooling,
            "normalize": card.normalize or card.pooling is None,
            "prompt": card.prompt,
            "lowercase": card.lowercase,
            "truncate_dim": card.truncate_dim,
        }
        stated.update(options)
        network = whole.base_model
        network.card = card
        # Refuses what does not fit before the network is worked on.
        plain = cls(network, tokenizer, **stated)
        if plain.pooling == "last" and isinstance(prune, Policy):
            prune = _keeping_last(prune, network)
        plain.model = accelerated(network, dtype, prune, "pool" if plain.pooling == "mean" else "cls")
        return plain

    @property
    def dimensions(self) -> int:
        """Numbers of an embedding."""
        return min(int(self.model.config.hidden_size), self.truncate_dim or sys.maxsize)

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes."""
        return dtypes.own(self.model)

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest input, special tokens included; None for no limit."""
        return self._cutter.max_length

    @property
    def settings(self) -> dict[str, Any]:
        """What makes another embedder of the same network give the same embeddings: arguments of `Embedder`."""
        cutter = self._cutter
        return {
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": cutter.max_length,
            "overflow": cutter.overflow,
            "prompt": cutter.prompt,
            "lowercase": cutter.lowercase,
            "truncate_dim": self.truncate_dim,
        }

    def __call__(self, text: str) -> Embedding:
        """The embedding of one text.

        Raises:
            TypeError, ValueError: as `embed`.
        """
        return next(self.stream([text]))

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """Embeddings, float32 [N, H]; a warning counts the texts that were cut.

        Raises:
            TypeError: a text that is not a str; the message names its position.
            ValueError: a text that is not Unicode, or too long with overflow "error"; a model in training mode.
        """
        rows, cut, lost = [], 0, 0
        for found in self.stream(texts):
            rows.append(found.vector)
            cut, lost = cut + (found.truncated > 0), lost + found.truncated
        if cut:
            warnings.warn(
                f"{cut} of {len(rows)} texts were cut at {self.max_length} tokens, {lost} tokens were not read: "
                "overflow='split' reads them",
                stacklevel=2,
            )
        return np.stack(rows) if rows else np.empty((0, self.dimensions), np.float32)

    def stream(self, texts: Iterable[str]) -> Iterator[Embedding]:
        """The embedding of each text, in order, while they are read; memory does not grow with their number.

        A text without tokens (empty, and a tokenizer that adds none) has a vector of zeros.

        Raises:
            TypeError, ValueError: as `embed`, after the embeddings of all texts before the one at fault.
        """
        check_evaluating(self.model)  # dropout would change every answer
        for pieces in stream(self._cutter, texts, self._pooled, self.max_tokens):
            found = [made for _, made in pieces if made is not None]
            if not found:
                yield Embedding(np.zeros(self.dimensions, np.float32), tokens=0, truncated=0, kept=0)
                continue
            vectors = np.stack([vector for vector, _ in found]).astype(np.float64)
            counts = np.array([len(window.ids) for window, _ in pieces])
            vector = counts @ vectors / counts.sum() if len(pieces) > 1 else vectors[0]
            if self.normalize:
                vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
            yield Embedding(
                vector=vector[: self.truncate_dim].astype(np.float32),
                tokens=int(counts.sum()),
                truncated=sum(window.cut for window, _ in pieces),
                kept=sum(kept for _, kept in found),
            )

    @torch.no_grad()
    def _pooled(self, windows: list[Window]) -> list[tuple[np.ndarray, int]]:
        """Pooled output, float32 [H], and tokens left, of each window of a batch."""
        ids, mask = padded(windows, self._pad, self.model.device)
        out = self.model(input_ids=ids, attention_mask=mask)
        pooled, kept = pool(out, mask, self.pooling)
        return list(zip(pooled.cpu().numpy(), kept.tolist()))


def pool(out: Any, mask: Tensor, pooling: str) -> tuple[Tensor, Tensor]:
    """One row per sequence, float32 [B, H], and the tokens that were left, int64 [B].

    Args:
        out: output with last_hidden_state [B, S, H], zeros where a token was dropped; kept where the network prunes.
        mask: int64 [B, S], ones before zeros.

    Raises:
        ValueError: the token that the pooling reads was dropped.
    """
    hidden = out.last_hidden_state
    kept = tokens_left(out, mask)
    if pooling == "mean":
        return mean_pool(out, mask), kept
    column = torch.zeros_like(kept) if pooling == "cls" else mask.sum(1) - 1
    row = torch.arange(len(hidden), device=hidden.device)
    if not bool(has_state(out, mask)[row, column].all()):
        which, name = ("first", "cls") if pooling == "cls" else ("last", "sep")
        raise ValueError(f"pooling {pooling!r} reads the {which} token, which the policy dropped: protect={name!r}")
    return hidden[row, column].float(), kept


def _keeping_last(policy: Policy, network: Any) -> Policy:
    """The policy, which protects the last token as well."""
    names = policy.protect
    if not is_dataclass(policy) or (names is None and parts_of(network).architecture.causal):  # it does
        return policy
    return replace(policy, protect=(*(("cls",) if names is None else names), "sep"))


def tokens_left(out: Any, mask: Tensor) -> Tensor:
    """int64 [B]: the tokens of each sequence that were left at the end."""
    kept = getattr(out, "kept", None)
    return mask.sum(1) if kept is None else kept[-1].to(mask.device)


def accelerated(model: Any, dtype: Any, prune: Any, task: str = "auto") -> Any:
    """The model without padding and, with a policy, without unimportant tokens; with the card of the original."""
    faster = accelerate(model, prune=prune, dtype=dtype, task=task)
    faster.card = model.card
    return faster
