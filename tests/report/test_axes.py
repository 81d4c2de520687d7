"""Labels, flags and ticks of a chart do not overlap and are round."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rung.report import axes

positions = st.lists(st.floats(-50, 400), min_size=1, max_size=12)


@given(positions)
def test_spread_labels_do_not_overlap(wanted):
    placed = axes.place_labels(wanted, 17, 0, 300)
    stacked = sorted(placed)
    assert all(b - a >= 17 - 1e-6 for a, b in itertools.pairwise(stacked))
    assert sorted(range(len(wanted)), key=wanted.__getitem__) == sorted(
        range(len(wanted)), key=placed.__getitem__
    )
    assert stacked[0] >= -1e-6
    assert stacked[-1] <= 300 + 1e-6


def test_spread_moves_labels_no_more_than_needed():
    assert axes.place_labels([10, 100, 200], 17, 0, 300) == [10, 100, 200]
    assert axes.place_labels([100, 100], 20, 0, 300) == [90, 110]
    assert axes.place_labels([295, 300], 20, 0, 300) == [280, 300]
    assert axes.place_labels([5, 5, 5], 20, 0, 30) == [0, 20, 40]


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(10, 150)), min_size=1, max_size=8))
def test_a_flag_meets_no_other_flag_and_no_pole(flags):
    levels = axes.stack_flags(flags)
    for i, (x, width) in enumerate(flags):
        for j, (pole, _) in enumerate(flags):
            if i != j and x < pole < x + width:
                assert levels[j] < levels[i]
            if i != j and x == pole:
                assert levels[j] != levels[i]


def test_ticks_are_round():
    assert axes.round_ticks(1.83, 3.4, 5) == pytest.approx([2.0, 2.5, 3.0])
    assert axes.round_ticks(0, 1_090_000, 5) == pytest.approx(
        [0, 250_000, 500_000, 750_000, 1_000_000]
    )
