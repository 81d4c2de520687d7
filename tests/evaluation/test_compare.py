"""Two costs of the same documents: the paired bootstrap beside scipy's, and by every resample."""

import itertools
import math
from dataclasses import astuple

import numpy
import pytest

from rung.evaluation import compare
from rung.evaluation.compare import paired_bootstrap, paired_difference

SIZES = numpy.array([120, 80, 400, 33, 250, 90, 700, 15])
BASELINE = numpy.array([90.0, 70.0, 310.0, 30.0, 160.0, 99.0, 540.0, 9.0])
GAINS = numpy.array([-4.137, 2.291, -30.713, 1.933, -9.211, -1.419, -12.671, 3.357])  # nats


def test_the_bootstrap_is_scipys():
    """The same draws of the same generator, whatever fits in memory at once."""
    bootstrap = pytest.importorskip("scipy.stats", reason="is the reference").bootstrap

    def rate(gains, sizes, axis):
        return gains.sum(axis=axis) / sizes.sum(axis=axis) / math.log(2)

    wanted = bootstrap(
        (GAINS, SIZES), rate, paired=True, vectorized=True, n_resamples=compare.RESAMPLES,
        method="percentile", random_state=numpy.random.default_rng(0),
    )  # fmt: skip
    found = paired_bootstrap(BASELINE + GAINS, BASELINE, SIZES)
    assert (found.low, found.high) == pytest.approx(wanted.confidence_interval, abs=1e-12)
    holds = (wanted.bootstrap_distribution < 0).mean()
    assert found.mean < 0 and found.sign_holds == pytest.approx(holds, abs=1e-12)
    assert (found.documents, found.resamples) == (8, compare.RESAMPLES)


def test_the_bootstrap_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch):
    whole = paired_bootstrap(BASELINE + GAINS, BASELINE, SIZES)
    monkeypatch.setattr(compare, "DRAWS_AT_ONCE", 1000)
    assert paired_bootstrap(BASELINE + GAINS, BASELINE, SIZES) == whole


def test_the_bootstrap_comes_close_to_all_resamples():
    """Of four documents there are 256 resamples: their quantiles and signs, exactly."""
    gains, sizes = GAINS[:4], SIZES[:4]
    every = numpy.array(list(itertools.product(range(4), repeat=4)))
    exact = gains[every].sum(1) / sizes[every].sum(1) / math.log(2)
    found = paired_bootstrap(BASELINE[:4] + gains, BASELINE[:4], sizes)
    assert found.mean == pytest.approx(gains.sum() / sizes.sum() / math.log(2))
    assert found.sign_holds == pytest.approx((exact < 0).mean(), abs=0.015)
    assert (found.low, found.high) == pytest.approx(numpy.quantile(exact, (0.025, 0.975)), abs=0.03)


def test_a_difference_that_is_the_same_everywhere_has_no_width():
    found = paired_bootstrap(BASELINE + SIZES * math.log(2), BASELINE, SIZES)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.sign_holds == 1
    none = paired_bootstrap(BASELINE, BASELINE, SIZES)
    assert (none.mean, none.low, none.high, none.sign_holds) == (0, 0, 0, None)


def test_copies_of_a_document_are_drawn_as_one():
    keys = [0, 0, 0, 1, 1, 2, 3, 3]
    merged = [numpy.bincount(keys, column) for column in (BASELINE + GAINS, BASELINE, SIZES)]
    found = paired_bootstrap(BASELINE + GAINS, BASELINE, SIZES, keys)
    assert astuple(found) == pytest.approx(astuple(paired_bootstrap(*merged)))
    assert found.documents == 4
    alone = paired_bootstrap([3.0, 3.0], [2.0, 2.0], [10, 10], [7, 7])
    assert (alone.low, alone.sign_holds, alone.documents) == (None, None, 1)
    assert alone.mean == pytest.approx(0.1 / math.log(2))


def test_an_infinite_cost_has_no_difference():
    for nats, baseline in (([math.inf, 1], [1, 1]), ([math.inf, 1], [math.inf, 1])):
        found = paired_bootstrap(nats, baseline, [10, 10])
        assert (found.mean, found.low, found.high, found.sign_holds) == (None,) * 4


def test_very_many_documents_are_drawn_less_often(monkeypatch):
    monkeypatch.setattr(compare, "MAX_DRAWS", 16_000)
    assert paired_bootstrap(BASELINE + GAINS, BASELINE, SIZES).resamples == 2000
    monkeypatch.setattr(compare, "MAX_DRAWS", 1)
    found = paired_bootstrap(BASELINE + GAINS, BASELINE, SIZES)
    assert found.resamples == compare.MIN_RESAMPLES
    student = paired_difference(BASELINE + GAINS, BASELINE, SIZES)
    assert student.low < found.low < found.high < student.high
