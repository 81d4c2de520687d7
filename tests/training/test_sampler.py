"""The order of the text: every epoch a permutation, every place of it found without the ones
before.
"""

import time
import tracemalloc

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.training.sampler import CHUNK, ResumableSampler, permute
from tests.conftest import examples


def read(order):
    return list(
        iter(order)
    )  # a list made of the order itself would make room for its whole length first


@settings(max_examples=examples(60), deadline=None)
@given(items=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 2**31))
def test_an_epoch_reads_each_item_once(items, seed, epoch):
    order = ResumableSampler(items, seed=seed, first=epoch * items, last=(epoch + 1) * items)
    assert sorted(read(order)) == list(range(items))


@settings(max_examples=examples(60), deadline=None)
@given(
    items=st.integers(1, 3 * CHUNK),
    first=st.integers(0, 5 * CHUNK),
    count=st.integers(1, 3 * CHUNK),
)
def test_it_goes_on_at_any_place_as_if_it_had_begun_at_none(items, first, count):
    whole = ResumableSampler(items, seed=7, first=0, last=first + count)
    assert (
        read(ResumableSampler(items, seed=7, first=first, last=first + count))
        == read(whole)[first:]
    )
    assert len(whole) == first + count


def test_epochs_and_seeds_are_different_and_the_text_can_be_read_as_it_stands():
    first, second = (
        read(ResumableSampler(99, seed=0, first=99 * n, last=99 * n + 99)) for n in (0, 1)
    )
    assert first != second
    assert first != read(ResumableSampler(99, seed=1, first=0, last=99))
    assert read(ResumableSampler(3, seed=None, first=2, last=8)) == [2, 0, 1, 2, 0, 1]


def test_epochs_whose_items_differ_are_numbered():
    order = {"items": 7, "seed": 0, "first": 5, "last": 25}
    plain, numbered = (
        read(ResumableSampler(**order, numbers_epochs=numbers)) for numbers in (False, True)
    )
    assert [item % 7 for item in numbered] == plain
    assert [item // 7 for item in numbered] == [place // 7 for place in range(5, 25)]


@pytest.mark.parametrize("items", [2, 3, 5, 8, 17])
def test_every_item_is_as_likely_at_every_place(items):
    """Over many epochs; the deviation of each count from its mean stays within what chance
    allows.
    """
    epochs = 2000
    drawn = numpy.array(
        [permute(numpy.arange(items), items, (0, epoch)) for epoch in range(epochs)]
    )
    for place in range(items):
        counts = numpy.bincount(drawn[:, place], minlength=items)
        spread = numpy.sqrt(epochs / items * (1 - 1 / items))
        assert numpy.abs(counts - epochs / items).max() < 5 * spread
    together = numpy.mean(
        [(drawn[:, 1] - drawn[:, 0]) % items == step for step in range(1, items)], axis=1
    )
    assert numpy.abs(together - 1 / (items - 1)).max() < 5 * numpy.sqrt(1 / (items - 1) / epochs)


def test_a_place_far_into_a_text_beyond_memory_is_reached_at_once():
    tracemalloc.start()
    started = time.process_time()
    far = 10**15 + 123
    assert all(
        0 <= item < 10**12 for item in ResumableSampler(10**12, seed=0, first=far, last=far + 10)
    )
    assert time.process_time() - started < 0.5
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
