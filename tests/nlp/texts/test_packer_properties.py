"""What holds for every stream of lengths, budget and look-ahead."""

from itertools import islice, pairwise

import pytest

from nlp.texts.packer import Packer

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 200)), max_size=120)
PACKERS = st.builds(Packer, st.integers(1, 150), st.integers(1, 60), st.booleans())


def cost(packer, lengths):
    return len(lengths) * max(lengths) if packer.padded else sum(lengths)


@given(packer=PACKERS, lengths=LENGTHS, start=st.integers(0, 10**12))
def test_every_item_exactly_once_within_the_budget(packer, lengths, start):
    batches = list(packer.batches(iter(lengths), lambda n: n, start))
    assert all(batches)
    assert sorted(pair for batch in batches for pair in batch) == list(enumerate(lengths, start))
    for batch in batches:
        assert [position for position, _ in batch] == sorted(position for position, _ in batch)
        assert len(batch) == 1 or cost(packer, [n for _, n in batch]) <= packer.max_tokens
        assert len(batch) <= packer.look_ahead


@given(packer=PACKERS, lengths=LENGTHS)
def test_order_is_restored(packer, lengths):
    items = list(enumerate(lengths))
    assert list(packer.map(lambda batch: [("done", *item) for item in batch], items, lambda item: item[1])) == [
        ("done", *item) for item in items
    ]


@given(packer=PACKERS, lengths=LENGTHS.filter(bool), n=st.integers(1, 150))
def test_endless_stream(packer, lengths, n):
    """A repeated list as an endless stream: never more than look_ahead items are read and not handed out."""
    read = handed = 0

    def source():
        nonlocal read
        while True:
            for length in lengths:
                read += 1
                assert read - handed <= packer.look_ahead
                yield read - 1, length

    def function(batch):
        # The earliest item that was not handed out is in the batch, and none is far from it.
        assert batch[0][0] == handed and batch[-1][0] < handed + packer.look_ahead
        return batch

    for item in islice(packer.map(function, source(), lambda item: item[1]), n):
        assert item[0] == handed
        handed += 1


@given(packer=PACKERS, lengths=LENGTHS)
def test_batches_are_full_runs_of_the_sorted_lengths(packer, lengths):
    """With the whole stream in view, batches are runs of the sorted lengths, none with room for one item more."""
    wide = Packer(packer.max_tokens, max(len(lengths), 1), packer.padded)
    batches = [[n for _, n in batch] for batch in wide.batches(lengths, lambda n: n)]
    batches.sort(key=lambda batch: (-max(batch), -min(batch)))
    for batch, following in pairwise(batches):
        assert min(batch) >= max(following)
        assert cost(packer, [*batch, max(following)]) > packer.max_tokens


@given(packer=PACKERS, lengths=LENGTHS.filter(bool), data=st.data())
def test_an_error_loses_nothing_before_it(packer, lengths, data):
    bad = data.draw(st.integers(0, len(lengths) - 1))
    got = []

    def function(batch):
        if any(position == bad for position, _ in batch):
            raise ArithmeticError
        return batch

    with pytest.raises(RuntimeError) as caught:
        got.extend(packer.map(function, enumerate(lengths), lambda item: item[1]))
    assert bad in caught.value.positions
    assert got == list(enumerate(lengths))[: caught.value.positions[0]]
