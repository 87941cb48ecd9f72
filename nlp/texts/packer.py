"""Length-aware batches from a stream of any length, and results in the order of the stream."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_POSITIONS_SHOWN = 8


class BatchError(RuntimeError):
    """The function given to `Packer.map` failed on a batch; `__cause__` is what it raised.

    `positions` names the items of that batch, ascending. Every result before `positions[0]` has been handed out.
    """

    def __init__(self, positions: list[int], reason: str) -> None:
        super().__init__(positions, reason)
        self.positions = positions
        self.reason = reason

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.positions[:_POSITIONS_SHOWN]))
        more = len(self.positions) - _POSITIONS_SHOWN
        return f"the batch of items {shown}{f' and {more} more' if more > 0 else ''} failed: {self.reason}"


@dataclass(frozen=True)
class Packer:
    """Groups items of similar length into batches of at most `max_tokens`.

    The next `look_ahead` items of the stream are read, sorted by length, and cut into batches; when all of these are
    done, the next ones are read. So at most `look_ahead` items, or results in their place, are held at any time,
    however long the stream is, and an endless stream gives results. The first batch comes when `look_ahead` items have
    been read: take fewer where items arrive slowly. A batch holds at most `look_ahead` items; below some ten batches'
    worth of items, lengths within a batch become uneven.

    Of the batches at hand, the one with the earliest item comes first: each batch of `map` gives at least one result.
    The batches depend on the lengths and their order alone.

    Args:
        max_tokens: the budget of a batch. An item longer than that gets a batch of its own.
        look_ahead: how many items are sorted together.
        padded: whether a batch costs its number of items times its longest, as for a model that takes padded batches,
            instead of the sum of its lengths.

    Raises:
        ValueError: a max_tokens or look_ahead that is not an integer of at least 1.

    Example:
        >>> import nlp
        >>> texts = ["a", "a longer text", "b", "another long text"]
        >>> [[text for _, text in batch] for batch in nlp.Packer(max_tokens=30).batches(texts)]
        [['a', 'b'], ['a longer text', 'another long text']]
        >>> list(nlp.Packer(max_tokens=30).map(lambda batch: [len(text) for text in batch], texts))
        [1, 13, 1, 17]
    """

    max_tokens: int
    look_ahead: int = 1024
    padded: bool = False

    def __post_init__(self) -> None:
        for name in ("max_tokens", "look_ahead"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")

    def batches(
        self, items: Iterable[T], length: Callable[[Any], int] = len, start: int = 0
    ) -> Iterator[list[tuple[int, T]]]:
        """Every item once, in batches of (position, item), ascending within a batch.

        If `items` or `length` raises, the items read before come first, then the error.

        Args:
            items: any iterable, endless ones too.
            length: tokens of an item.
            start: position of the first item: a caller that resumes after n items passes n, and the others.

        Raises:
            ValueError: a length that is negative or not an integer, with the position.
        """
        iterator = iter(items)
        error: Exception | None = None
        while error is None:
            group: list[tuple[int, T]] = []
            lengths: list[int] = []
            try:
                for item in islice(iterator, self.look_ahead):
                    position = start + len(group)
                    lengths.append(_checked_length(length(item), position))
                    group.append((position, item))
            except Exception as caught:  # raised once the items before it are done: they are not lost
                error = caught
            if not group:
                break
            start += len(group)
            batches = deque([group[i] for i in places] for places in self._cut(lengths))
            del group
            while batches:
                yield batches.popleft()  # a batch that is done is not held here
        if error is not None:
            raise error

    def map(
        self,
        function: Callable[[list[T]], Iterable[R]],
        items: Iterable[T],
        length: Callable[[Any], int] = len,
        start: int = 0,
    ) -> Iterator[R]:
        """`function(list of items)` on batches; the results one by one, in the order of the items.

        A result is handed out as soon as those of all items before it have been. To resume, count the results.

        Args:
            function: takes the items of a batch and returns one result for each, in their order.
            items, length, start: as in `batches`.

        Raises:
            BatchError: the function raised, or returned another number of results; with the positions of the batch.
        """
        done: dict[int, R] = {}
        following = start
        for batch in self.batches(items, length, start):
            positions = [position for position, _ in batch]
            members = [item for _, item in batch]
            del batch
            try:
                results = list(function(members))
            except Exception as error:
                raise BatchError(positions, f"{type(error).__name__}: {error}") from error
            if len(results) != len(positions):
                raise BatchError(positions, f"{len(positions)} items gave {len(results)} results")
            done.update(zip(positions, results))
            del members, results
            while following in done:
                yield done.pop(following)
                following += 1

    def _cut(self, lengths: list[int]) -> list[list[int]]:
        """Places in `lengths` of each batch, ascending; the batch with the earliest place first."""
        batches: list[list[int]] = []
        budget = 0  # tokens that the last batch may still take
        cost = 0  # tokens that one more item takes of it
        for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if not self.padded:
                cost = lengths[i]
            if not batches or cost > budget:
                batches.append([])
                budget = self.max_tokens
                cost = lengths[i]  # of a padded batch its first item, the longest, decides
            batches[-1].append(i)
            budget -= cost
        for batch in batches:
            batch.sort()
        return sorted(batches)


def _checked_length(value: Any, position: int) -> int:
    try:
        length = operator.index(value)
    except TypeError:
        raise ValueError(f"length must be an integer, got {value!r} for item {position}") from None
    if length < 0:
        raise ValueError(f"length must not be negative, got {length} for item {position}")
    return length
