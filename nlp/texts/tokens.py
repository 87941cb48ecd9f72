"""Texts to windows of token ids that a network can take: cut or split at its limit, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from common_models.errors import ArgumentError
from nlp.pretrained.cards import position_limit
from nlp.texts.packer import BatchError, Packer

OVERFLOWS = ("truncate", "split", "error")
CHUNK = 64  # texts that are tokenised at a time, on all threads,
CHUNK_CHARACTERS = 1 << 20  # or fewer that have so many: tokenisers take some 90 bytes for each

Result = TypeVar("Result")


@dataclass(frozen=True)
class Window:
    """A piece of a text, as the network takes it.

    Attributes:
        text: position of the text.
        ids: token ids, special tokens included.
        cut: tokens of the text that no window holds.
        last: whether it is the text's last window.
    """

    text: int
    ids: list[int]
    cut: int
    last: bool


class Cutter:
    """Tokenises texts and cuts them to a network's limit.

    Args:
        tokenizer: a fast tokenizer of transformers (it is copied: truncation and padding that it carries do not act).
        max_length: tokens of a window, special tokens included; None for no limit.
        overflow: what happens to longer texts: "truncate" keeps the first window, "split" makes as many windows as
            needed, "error" raises.
        prompt: prefix of every text.
        lowercase: whether texts are lower-cased first.

    Raises:
        TypeError: a prompt that is not a str.
        ValueError: no fast tokenizer, or a limit without room for a token beside the special ones.
    """

    def __init__(
        self, tokenizer: Any, max_length: int | None, overflow: str, prompt: str = "", lowercase: bool = False
    ) -> None:
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow must be one of {', '.join(OVERFLOWS)}, got {overflow!r}")
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a str, got {type(prompt).__name__}")
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(f"tokenizer must be a fast tokenizer of transformers, got {type(tokenizer).__name__}")
        backend = tokenizer.backend_tokenizer
        self._tokenizer = type(backend).from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = backend.encode_special_tokens
        self.max_length, self.overflow, self.prompt, self.lowercase = max_length, overflow, prompt, lowercase
        self.vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._before, self._after = _special_tokens(self._tokenizer)
        special = len(self._before) + len(self._after)
        if max_length is not None and (type(max_length) is not int or max_length <= special):
            raise ArgumentError(
                "max_length", f"must be a whole number above {special}, the special tokens, got {max_length}"
            )
        self._room = None if max_length is None else max_length - special

    def windows(self, texts: Iterable[str]) -> Iterator[Window]:
        """The windows of all texts, in order; at least one for each text.

        Raises:
            TypeError: a text that is not a str (after the windows of those before it).
            ValueError: a text that is not Unicode, without any token, or, with overflow "error", too long (likewise).
        """
        first, source = 0, iter(texts)
        problem: Exception | None = None
        while problem is None:
            fit: list[str] = []
            characters = 0
            try:
                for text in islice(source, CHUNK):
                    fit.append(self._prepared(first + len(fit), text))
                    characters += len(text)
                    if characters >= CHUNK_CHARACTERS:
                        break
            except Exception as error:  # of the source itself as well: the texts before it count
                problem = error
            if not fit and problem is None:
                return
            for i, ids in enumerate(self._encode(fit), start=first):
                yield from self._cut(i, ids)
            first += len(fit)
        raise problem

    def _prepared(self, i: int, text: object) -> str:
        """texts[i] with prompt and case, if it is a text."""
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a str, got {type(text).__name__}")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"texts[{i}] must be Unicode text, got the lone surrogate {text[error.start]!r}"
                ) from None
        text = self.prompt + text
        return text.lower() if self.lowercase else text

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if torch.get_num_threads() == 1:
            return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return [found.ids for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _cut(self, text: int, ids: list[int]) -> Iterator[Window]:
        room, before, after = self._room, self._before, self._after
        total = len(before) + len(ids) + len(after)
        if room is None or len(ids) <= room:
            yield Window(text, [*before, *ids, *after], 0, True)
        elif self.overflow == "error":
            raise ValueError(f"texts[{text}] must be of at most {self.max_length} tokens, got {total}")
        elif self.overflow == "truncate":
            yield Window(text, [*before, *ids[:room], *after], len(ids) - room, True)
        else:
            for start in range(0, len(ids), room):
                piece = [*before, *ids[start : start + room], *after]
                yield Window(text, piece, 0, start + room >= len(ids))


def stream(
    cutter: Cutter,
    texts: Iterable[str],
    function: Callable[[list[Window]], list[Result]],
    max_tokens: int,
) -> Iterator[list[tuple[Window, Result | None]]]:
    """The windows of each text with what `function` makes of them in batches; texts in order, bounded memory.

    A window without tokens, of an empty text where the tokenizer adds none, comes with None. What is wrong with a text
    is raised after the results of all texts before it.

    Args:
        max_tokens: of a batch, padding included: what it takes of memory.

    Raises:
        TypeError: `texts` is a single text.
        BatchError: the function failed; `positions` are those of the texts.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"texts must be an iterable of str, got a {type(texts).__name__}: wrap it in a list")
    problems: list[Exception] = []
    waiting: list[Window] = []

    def windows() -> Iterator[Window]:
        try:
            for window in cutter.windows(texts):
                waiting.append(window)
                yield window
        except Exception as error:
            problems.append(error)

    def run(batch: list[Window]) -> list[Result | None]:
        some = [window for window in batch if window.ids]
        made = iter(function(some) if some else ())
        return [next(made) if window.ids else None for window in batch]

    group: list[tuple[Window, Result | None]] = []
    packer = Packer(max_tokens, padded=True)
    results = packer.map(run, windows(), length=lambda window: max(1, len(window.ids)))
    passed = 0  # windows that are no longer in `waiting`
    try:
        for position, result in enumerate(results):
            window = waiting[position - passed]
            group.append((window, result))
            if window.last:
                del waiting[: position + 1 - passed]
                passed = position + 1
                yield group
                group = []
    except BatchError as error:
        failed = sorted({waiting[position - passed].text for position in error.positions})
        raise BatchError(failed, error.reason) from error.__cause__
    if problems:
        raise problems[0]


def padded(windows: list[Window], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [B, S], padded on the right."""
    longest = max(len(window.ids) for window in windows)
    ids = torch.full((len(windows), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = torch.tensor(window.ids, dtype=torch.int64)
        mask[row, : len(window.ids)] = 1
    return ids.to(device), mask.to(device)


def length_limit(model: Any, tokenizer: Any, max_length: int | None) -> int | None:
    """Tokens that a network takes: `max_length` where given, else what its card, tokenizer and positions allow.

    Raises:
        ValueError: a `max_length` beyond the network's positions.
    """
    limit = position_limit(model.config)
    if max_length is not None:
        if limit is not None and type(max_length) is int and max_length > limit:
            raise ArgumentError(
                "max_length", f"must be at most {limit}, the positions of the network, got {max_length}"
            )
        return max_length
    stated = [
        limit,
        getattr(getattr(model, "card", None), "max_tokens", None),
        getattr(tokenizer, "model_max_length", None),
    ]
    # A tokenizer that knows no limit says 1e30.
    known = [int(each) for each in stated if each is not None and 0 < each < 1e9]
    return min(known) if known else None


def pad_token(model: Any, tokenizer: Any) -> int:
    """What fills the columns that the mask hides: the network's own choice, as some find positions or ends by it."""
    for choice in (getattr(model.config, "pad_token_id", None), tokenizer.pad_token_id):
        if choice is not None and choice >= 0:
            return int(choice)
    return 0


def check_vocabulary(cutter: Cutter, model: Any) -> None:
    """Raise where the tokenizer has more tokens than the network: the two do not belong together."""
    rows = model.get_input_embeddings().weight.shape[0]
    if cutter.vocabulary > rows:
        raise ValueError(
            f"tokenizer must be the network's, of at most {rows} tokens, got another one of {cutter.vocabulary}"
        )


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after every text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        before, after = whole[:start], whole[start + len(plain) :]
        if plain and whole[start : start + len(plain)] == plain:
            return before, after
    raise ValueError("tokenizer must put its special tokens before and after a text, got one that changes the text")
