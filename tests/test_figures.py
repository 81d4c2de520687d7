"""Figures: intervals that hold their level for few documents, perplexities of any size."""

import math

import numpy
import pytest

from rung.figures import find_interval, perplexity, show_perplexity, show_word_perplexity, student_t

DRAWS = 800
SPREAD = {"equal": 0.0, "skewed": 1.0, "very skewed": 1.5}  # of the logarithm of a document's length


def draw_texts(count, spread, generator):
    """The bits and bytes of so many documents, the bits of a byte spread around 2 in a skewed way."""
    sizes = numpy.exp(generator.normal(7, spread, count)).round() + 1
    return sizes * generator.gamma(25, 2 / 25, count), sizes


def cover(count, spread, copies=1):
    """In what share of draws the interval holds the 2 bits per byte that there are."""
    generator = numpy.random.default_rng(count)
    hits = 0
    for _ in range(DRAWS):
        bits, sizes = draw_texts(count, spread, generator)
        keys = list(range(count)) * copies
        found = find_interval(numpy.tile(bits, copies), numpy.tile(sizes, copies), keys, least=0.0)
        hits += found.low <= 2 <= found.high
    return hits / DRAWS


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
    found = find_interval(bits, sizes)
    assert found.high - found.low == pytest.approx(high - low, rel=0.08)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_where_there_is_none_it_says_why():
    assert find_interval([2.0], [1]).how == "none: one document"
    assert find_interval([2.0, 2.0], [1, 1], ["a", "a"]).how == "none: all 2 documents are equal"
    assert find_interval([2.0, math.inf], [1, 1]).how == "none: a cost is infinite"
    found = find_interval([20.0, 1.0], [10, 10], least=0.0)
    assert (found.low, found.how) == (0.0, "Student's t over 2 documents")
    assert find_interval([20.0, 1.0], [10, 10]).low < 0


def test_a_document_without_text_has_a_cost_too():
    found = find_interval([10.0, 12.0, 3.0], [5, 6, 0])
    assert found.low < 25 / 11 < found.high


@pytest.mark.parametrize(("freedom", "wanted"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042), (1e9, 1.960)])
def test_students_t_is_that_of_the_tables(freedom, wanted):
    assert student_t(freedom) == pytest.approx(wanted, abs=6e-4)


def test_perplexities_are_written_in_powers_of_ten_where_they_are_large():
    shown = {None: "–", math.inf: "infinite", 1.308: "20.3", 3.9602: "9,124", 7.2788: "1.9×10^7", 1680.2: "1.6×10^1680"}
    for log10, wanted in shown.items():
        assert show_perplexity(log10) == wanted
    assert show_perplexity(9.9999) == "1.0×10^10"
    assert perplexity(709, 1) < math.inf
    assert perplexity(710, 1) == perplexity(math.inf, 1) == math.inf


def test_a_score_on_record_is_written_from_its_nats():
    score = {"word_perplexity": None, "nats": 3869.0, "words": 1, "bytes": 40}
    assert show_word_perplexity(score) == "1.9×10^1680"
    assert show_word_perplexity({**score, "nats": None}) == "infinite"
    assert show_word_perplexity({"word_perplexity": 9123.4}) == "9,123"
    assert show_word_perplexity({}) == "–"


def test_where_there_are_next_to_no_spaces_words_have_no_perplexity():
    assert show_word_perplexity({"word_perplexity": 2.0, "nats": 1.0, "words": 10, "bytes": 501}) == "–"
    assert show_word_perplexity({"word_perplexity": 2.0, "nats": 6.93147, "words": 10, "bytes": 500}) == "2.0"
