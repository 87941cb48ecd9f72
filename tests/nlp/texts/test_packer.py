import itertools
import pickle
import weakref

import numpy as np
import pytest

from nlp.texts.packer import BatchError, Packer


def lengths_of(batches):
    return [[item for _, item in batch] for batch in batches]


def identity(length):
    return length


def test_groups_similar_lengths():
    lengths = [9, 2, 8, 3, 9, 2, 1, 8]
    batches = list(Packer(max_tokens=18).batches(lengths, identity))
    # By length: 9 9 | 8 8 | 3 2 2 1; the batch with the earliest item first, and items in order within it.
    assert batches == [[(0, 9), (4, 9)], [(1, 2), (3, 3), (5, 2), (6, 1)], [(2, 8), (7, 8)]]


def test_padded_budget_counts_the_longest():
    lengths = [10, 1, 1, 1, 1, 5, 5]
    assert lengths_of(Packer(10, padded=True).batches(lengths, identity)) == [[10], [1, 1, 1, 1], [5, 5]]
    assert lengths_of(Packer(10).batches([6, 4, 3, 3, 4], identity)) == [[6, 4], [3, 3, 4]]
    assert lengths_of(Packer(10, padded=True).batches([6, 4, 3, 3, 4], identity)) == [[6], [4, 4], [3, 3]]


def test_an_item_beyond_the_budget_is_alone():
    for padded in (False, True):
        assert lengths_of(Packer(10, padded=padded).batches([0, 11, 30, 0], identity)) == [[0, 0], [11], [30]]


def test_items_without_length():
    assert lengths_of(Packer(1).batches([0] * 5, identity)) == [[0] * 5]
    assert lengths_of(Packer(1, look_ahead=2, padded=True).batches([0] * 5, identity)) == [[0, 0], [0, 0], [0]]


def test_empty_stream():
    assert list(Packer(10).batches([])) == [] and list(Packer(10).map(list, iter([]))) == []


def test_length_of_texts_and_arrays():
    assert list(Packer(10).map(lambda texts: [t.upper() for t in texts], ["a", "bcd", ""])) == ["A", "BCD", ""]
    items = [np.zeros(n) for n in (3, 1, 2)]
    assert list(Packer(10).map(lambda batch: np.array([len(x) for x in batch]), items)) == [3, 1, 2]
    assert list(Packer(4).batches([[1, 2], [3]], length=lambda x: np.int64(len(x)))) == [[(0, [1, 2]), (1, [3])]]


def test_endless_stream_gives_results_without_reading_far():
    read = 0

    def source():
        nonlocal read
        for n in itertools.count():
            read += 1
            yield n

    results = Packer(50, look_ahead=20).map(lambda batch: batch, source(), lambda n: n * 7 % 31)
    for n in range(200):
        assert next(results) == n
        assert read <= (n // 20 + 1) * 20


def test_each_batch_gives_a_result():
    calls = []

    def function(batch):
        calls.append(len(batch))
        return batch

    lengths = [5, 1, 9, 2, 8, 7, 1, 6, 3, 4, 9, 2]
    results = Packer(10).map(function, lengths, identity)
    seen = []
    for _ in lengths:
        next(results)
        seen.append(len(calls))
    assert sorted(set(seen)) == list(range(1, len(calls) + 1))  # no call but it was followed by a result


def test_holds_neither_items_nor_results_that_are_done():
    class Item:
        def __init__(self, n):
            self.n = n

    alive = weakref.WeakSet()

    held = []

    def source():
        for n in range(400):
            if n % 40 == 0:
                assert len(alive) <= 3  # nothing of the items before is held when the next ones are read
            held.append(len(alive))
            item = Item(n)
            alive.add(item)
            yield item

    def function(batch):
        held.append(len(alive))
        results = [Item(item.n) for item in batch]
        alive.update(results)
        return results

    for n, result in enumerate(Packer(30, look_ahead=40).map(function, source(), lambda item: item.n % 5)):
        assert result.n == n
    assert max(held) <= 40 + 2  # the source and this loop hold the last one each
    assert max(held) >= 40


def test_error_of_the_function_names_the_batch():
    def function(batch):
        if 7 in batch:
            raise KeyError("seven")
        return batch

    results, got = Packer(13).map(function, range(8), identity, start=100), []
    with pytest.raises(BatchError, match=r"the batch of items 106, 107 failed: KeyError: 'seven'") as caught:
        got.extend(results)
    assert caught.value.positions == [106, 107] and isinstance(caught.value.__cause__, KeyError)
    assert got == [0, 1, 2, 3, 4, 5]  # all before the batch
    copy = pickle.loads(pickle.dumps(caught.value))  # it may come from another process
    assert copy.positions == [106, 107] and str(copy) == str(caught.value)


def test_error_text_of_a_large_batch_is_short():
    with pytest.raises(BatchError, match=r"items 0, 1, 2, 3, 4, 5, 6, 7 and 92 more failed: ZeroDivisionError"):
        list(Packer(1000).map(lambda batch: 1 // 0, range(100), lambda n: 1))


@pytest.mark.parametrize("wrong", [lambda batch: batch[1:], lambda batch: [*batch, 1], lambda batch: []])
def test_another_number_of_results(wrong):
    with pytest.raises(BatchError, match=r"items 0, 1, 2 failed: 3 items gave \d results"):
        list(Packer(10).map(wrong, ["a", "b", "c"]))


def test_interrupt_is_not_wrapped():
    def function(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Packer(10).map(function, ["a"]))


def test_error_of_the_source_loses_nothing():
    def source():
        yield from "abc"
        raise OSError("the disk is gone")

    results, got = Packer(10).map(lambda batch: batch, source()), []
    with pytest.raises(OSError, match="the disk is gone"):
        got.extend(results)
    assert got == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (-1, "length must not be negative, got -1 for item 12"),
        (1.5, "length must be an integer, got 1.5 for item 12"),
        (None, "length must be an integer, got None for item 12"),
    ],
)
def test_length_is_checked(length, message):
    results, got = Packer(10).map(lambda batch: batch, [1, 2, length, 4], identity, start=10), []
    with pytest.raises(ValueError, match=message):
        got.extend(results)
    assert got == [1, 2]


def test_resumes_after_the_results_that_came():
    items = [f"{n:>{n % 13}}" for n in range(100)]
    packer = Packer(30, look_ahead=16)
    first = list(itertools.islice(packer.map(lambda batch: batch, items), 37))
    rest = list(packer.map(lambda batch: batch, items[37:], start=37))
    assert first + rest == items
    positions = [position for batch in packer.batches(items[37:], start=37) for position, _ in batch]
    assert sorted(positions) == list(range(37, 100))


@pytest.mark.parametrize("value", [0, -5, 1.5, None, "8", True])
@pytest.mark.parametrize("name", ["max_tokens", "look_ahead"])
def test_arguments_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value!r}"):
        Packer(**{"max_tokens": 10, name: value})
