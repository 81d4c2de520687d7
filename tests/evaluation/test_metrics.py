"""Figures: intervals that hold their level for few documents, perplexities of any size."""

import math
import statistics

import numpy
import pytest

from rung.evaluation.metrics import (
    confidence_interval,
    format_interval,
    format_perplexity,
    format_token_perplexity,
    format_value,
    format_word_perplexity,
    log10_perplexity,
    perplexity,
    student_t_quantile,
)

DRAWS = 800
SPREAD = {
    "equal": 0.0,
    "skewed": 1.0,
    "very skewed": 1.5,
}  # of the logarithm of a document's length


def draw_texts(count, spread, generator):
    """The bits and bytes of so many documents, the bits of a byte spread around 2 in a skewed
    way.
    """
    sizes = numpy.exp(generator.normal(7, spread, count)).round() + 1
    return sizes * generator.gamma(25, 2 / 25, count), sizes


def cover(count, spread, copies=1):
    """In what share of draws the interval holds the 2 bits per byte that there are."""
    generator = numpy.random.default_rng(count)
    hits = 0
    for _ in range(DRAWS):
        bits, sizes = draw_texts(count, spread, generator)
        keys = list(range(count)) * copies
        found = confidence_interval(
            numpy.tile(bits, copies), numpy.tile(sizes, copies), keys, least=0.0
        )
        hits += found.low <= 2 <= found.high
    return hits / DRAWS


def error_of(costs, sizes):
    """The standard error of a ratio: each residual divided by what its own document took off it."""
    total, rate = sum(sizes), sum(costs) / sum(sizes)
    squares = sum((size / total) ** 2 for size in sizes)
    residuals = [
        ((cost - rate * size) / total) ** 2 / (1 - 2 * size / total + squares)
        for cost, size in zip(costs, sizes, strict=True)
    ]
    return math.sqrt(sum(residuals))


@pytest.mark.parametrize("spread", list(SPREAD))
@pytest.mark.parametrize("count", [2, 3, 5, 10, 30, 100])
def test_the_interval_covers(count, spread):
    """A percentile bootstrap over documents held 50% at 2 documents, 71% at 3 and 83% at 5."""
    assert 0.93 <= cover(count, SPREAD[spread]) <= 0.985


def test_copies_do_not_narrow_it():
    assert 0.93 <= cover(3, 1.0, copies=7) <= 0.985


def test_where_documents_are_many_it_is_the_bootstraps():
    generator = numpy.random.default_rng(0)
    bits, sizes = draw_texts(400, 0.7, generator)
    drawn = generator.integers(0, 400, (2000, 400))
    low, high = numpy.quantile(bits[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
    found = confidence_interval(bits, sizes)
    assert found.high - found.low == pytest.approx(high - low, rel=0.08)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_where_there_is_none_it_says_why():
    assert confidence_interval([2.0], [1]).how == "none: one document"
    assert (
        confidence_interval([2.0, 2.0], [1, 1], ["a", "a"]).how == "none: all 2 documents are equal"
    )
    assert confidence_interval([2.0, math.inf], [1, 1]).how == "none: a cost is infinite"
    found = confidence_interval([20.0, 1.0], [10, 10], least=0.0)
    assert (found.low, found.how) == (0.0, "Student's t over 2 documents")
    assert confidence_interval([20.0, 1.0], [10, 10]).low < 0


def test_of_equal_documents_it_is_students_of_their_mean():
    """Mean ± t s / √n, the t of n - 1 degrees of freedom from a table; copies are added up
    first.
    """
    rates = [2.0, 2.5, 1.5, 3.0, 2.25]
    half = 2.7764 * statistics.stdev(rates) / 5**0.5
    found = confidence_interval([8 * rate for rate in rates], [8] * 5)
    assert (found.low, found.high) == pytest.approx((2.25 - half, 2.25 + half), abs=1e-4)
    copies = confidence_interval([4 * rate for rate in rates] * 2, [4] * 5 * 2, list("abcde") * 2)
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high))
    assert copies.how == "Student's t over 5 different documents of 10"
    assert confidence_interval([8 * rate for rate in rates], [8] * 5, least=1.9).low == 1.9


def test_of_unequal_documents_it_is_the_formula():
    costs, sizes = [20.0, 12.0, 31.0], [10, 4, 20]
    half = student_t_quantile(34**2 / (10**2 + 4**2 + 20**2) - 1) * error_of(costs, sizes)
    found = confidence_interval(costs, sizes)
    assert (found.low, found.high) == pytest.approx((63 / 34 - half, 63 / 34 + half))
    one_is_nearly_all = confidence_interval(
        [2000.0, 1.0], [1000, 1]
    )  # never less than one degree of freedom
    assert one_is_nearly_all.high == pytest.approx(
        2001 / 1001 + student_t_quantile(1.0) * error_of([2000.0, 1.0], [1000, 1])
    )


def test_a_document_without_text_has_a_cost_too():
    found = confidence_interval([10.0, 12.0, 3.0], [5, 6, 0])
    assert found.low < 25 / 11 < found.high


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042), (1e9, 1.960)]
)
def test_students_t_is_that_of_the_tables(freedom, wanted):
    assert student_t_quantile(freedom) == pytest.approx(wanted, abs=6e-4)


def test_perplexities_are_written_in_powers_of_ten_where_they_are_large():
    shown = {
        None: "–",
        math.inf: "infinite",
        1.308: "20.3",
        3.9602: "9,124",
        7.2788: "1.9×10^7",
        1680.2: "1.6×10^1680",
    }
    for log10, wanted in shown.items():
        assert format_perplexity(log10) == wanted
    assert format_perplexity(9.9999) == "1.0×10^10"
    assert (format_perplexity(6.5), format_perplexity(7.0)) == ("3,162,278", "1.0×10^7")
    assert (format_perplexity(2.99), format_perplexity(3.0)) == ("977.2", "1,000")
    assert perplexity(6.0, 3) == pytest.approx(math.exp(2))
    assert log10_perplexity(6.0, 3) == pytest.approx(math.log10(math.exp(2)))
    assert (perplexity(2.0, 0), log10_perplexity(2.0, 0)) == (
        perplexity(2.0, 1),
        log10_perplexity(2.0, 1),
    )
    assert perplexity(709, 1) < math.inf
    assert perplexity(710, 1) == perplexity(math.inf, 1) == math.inf


def test_a_score_on_record_is_written_from_its_nats():
    score = {"word_perplexity": None, "nats": 3869.0, "words": 1, "bytes": 40}
    assert format_word_perplexity(score) == "1.9×10^1680"
    assert format_word_perplexity({**score, "nats": None}) == "infinite"
    assert format_word_perplexity({"word_perplexity": 9123.4}) == "9,123"
    assert format_word_perplexity({}) == "–"
    assert format_word_perplexity({"word_perplexity": None}) == format_word_perplexity(
        {"word_perplexity": math.inf}
    )
    assert format_word_perplexity({"word_perplexity": 9123.4, "nats": 5.0}) == "9,123"


def test_where_there_are_next_to_no_spaces_words_have_no_perplexity():
    assert (
        format_word_perplexity({"word_perplexity": 2.0, "nats": 1.0, "words": 10, "bytes": 501})
        == "–"
    )
    assert (
        format_word_perplexity({"word_perplexity": 2.0, "nats": 6.93147, "words": 10, "bytes": 500})
        == "2.0"
    )


def test_a_token_perplexity_is_that_of_tokens():
    score = {"token_perplexity": 3.0, "nats": 6.93147, "tokens": 10, "words": 5}
    assert format_token_perplexity(score) == "2.0"
    assert format_token_perplexity({"token_perplexity": 3.0}) == "3.0"
    assert format_token_perplexity({"token_perplexity": math.inf}) == "infinite"


def test_a_figure_has_four_places_until_it_is_large():
    assert [format_value(value) for value in (1.23456, 9_999_999.0, 1e7)] == [
        "1.2346",
        "9999999.0000",
        "1.0×10^7",
    ]


def test_an_interval_is_written_with_how_it_was_found():
    score = {"low": 1.23456, "high": 2.0, "interval": "Student's t over 5 documents"}
    assert format_interval(score) == "95% interval 1.235 to 2.000 (Student's t over 5 documents)"
    assert format_interval({"low": 1.0, "high": 2.0}) == "95% interval 1.000 to 2.000"
    assert (
        format_interval({"low": None, "interval": "none: one document"})
        == "no interval: one document"
    )
