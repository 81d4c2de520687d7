"""Shares of new n-grams, against sets of n-grams made by hand."""

import random

import pytest

from rung.evaluation.novelty import (
    COMPARED_LENGTHS,
    NGRAM_LENGTHS,
    find_crossing,
    measure_novelty,
)
from rung.evaluation.overlap import SpanIndex

pytest.importorskip("pydivsufsort")


def ngrams(text, n):
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def draw(seed, count, kinds="abcdef", words=60):
    dice = random.Random(seed)
    return [" ".join(dice.choices(kinds, k=dice.randint(1, words))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_new_ngrams_are_those_of_sets(seed):
    train, texts = draw(seed, 30), [*draw(50 + seed, 5, "abcdefxy"), train_copy(seed), ""]
    found = measure_novelty(texts, SpanIndex(train, "words"))
    total_new = total = 0
    for n in NGRAM_LENGTHS:
        known = {gram for text in train for gram in ngrams(text, n)}
        written = [gram for text in texts for gram in ngrams(text, n)]
        new = sum(gram not in known for gram in written)
        assert found.new[n] == (new / len(written) if written else None)
        if n in COMPARED_LENGTHS:
            total_new, total = total_new + new, total + len(written)
    assert found.new_share == pytest.approx(total_new / total)
    assert found.low <= found.new_share <= found.high
    held = {gram for text in train for n in range(1, 61) for gram in ngrams(text, n)}
    longest = max(n for n in range(1, 61) for t in texts for g in ngrams(t, n) if g in held)
    assert found.longest == longest
    assert len(found.longest_text.split()) == longest
    grams = [gram for text in texts for gram in set(ngrams(text, 5))]
    written = [gram for text in texts for gram in ngrams(text, 5)]
    assert found.repeated == pytest.approx(1 - len(grams) / len(written))


def train_copy(seed):
    return max(draw(seed, 30), key=len)


def test_a_copy_is_not_new_and_other_words_are():
    train = draw(1, 20)
    index = SpanIndex(train, "words")
    copied, other = measure_novelty(train[:5], index), measure_novelty(["x y z"] * 5, index)
    assert set(copied.new.values()) <= {0.0, None}
    assert other.new[1] == other.new[3] == 1.0
    assert (other.new[4], other.longest, other.longest_text) == (None, 0, "")
    assert copied.compare(other) == "copies more"
    assert other.compare(copied) == "newer"
    assert copied.compare(copied) == "alike"
    assert measure_novelty(["x y z"], index).compare(copied) == "too few texts"
    half = measure_novelty([train[0], "x y z", "y z", train[1]], index)
    assert half.high <= 1
    assert copied.distance(other) == 1.0
    silent = measure_novelty(["", ""], index)
    assert (silent.new_share, silent.words, silent.repeated) == (None, 0, None)
    assert silent.compare(other) == "no words"
    assert silent.distance(other) == float("inf")
    assert measure_novelty([], index).new_share is None


def test_a_crossing_lies_on_the_line_between_two_settings():
    assert find_crossing([0.8, 0.4, 1.2], [0.5, 0.1, 0.9], 0.3) == pytest.approx(0.6)
    assert find_crossing([0.4, 0.8], [0.1, 0.5], 0.5) == pytest.approx(0.8)
    assert find_crossing([0.4, 0.8], [0.1, 0.5], 0.6) is None
    assert find_crossing([0.4], [0.1], 0.1) is None
    assert find_crossing([0.4, 0.8], [0.2, 0.2], 0.2) == pytest.approx(0.4)
