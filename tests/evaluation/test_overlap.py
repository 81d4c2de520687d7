"""Spans that two texts share, against a search through all n-grams and against difflib."""

import random
from difflib import SequenceMatcher

import numpy
import pytest

from rung.errors import RecipeError
from rung.evaluation.near_duplicates import NearDuplicate
from rung.evaluation.overlap import (
    SpanIndex,
    choose_unit,
    count_runs,
    find_duplicates,
    measure_overlap,
    split_units,
)

pytest.importorskip("pydivsufsort")


def draw_documents(seed, count, words=40, kinds=6):
    """Documents of few kinds of words, so that they share spans of many lengths."""
    dice = random.Random(seed)
    return [
        " ".join(dice.choices("abcdefghij"[:kinds], k=dice.randint(0, words))) for _ in range(count)
    ]


def ngrams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def longest_by_hand(words, train):
    """At each word the longest n-gram ending there that a training document has."""
    known = {gram for text in train for n in range(1, 60) for gram in ngrams(text.split(), n)}
    return [
        max((n for n in range(1, end + 1) if tuple(words[end - n : end]) in known), default=0)
        for end in range(1, len(words) + 1)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_every_longest_match_is_that_of_all_ngrams(seed):
    """No span goes beyond a document, on either side."""
    train = [text for text in draw_documents(seed, 8) if text] + ["x y z x y z x y z"]
    test = [*draw_documents(100 + seed, 6, kinds=7), "z x y z x unknown y z", ""]
    found = SpanIndex(train, "words").match(test)
    assert [each.tolist() for each in found] == [longest_by_hand(t.split(), train) for t in test]


@pytest.mark.parametrize("seed", range(4))
def test_the_longest_span_is_that_of_difflib(seed):
    train, test = draw_documents(seed, 1, 80, 4)[0] + " a", draw_documents(50 + seed, 1, 80, 4)[0]
    one, other = train.split(), [*test.split(), "a", "b"]
    found = measure_overlap([" ".join(other)], SpanIndex([train], "words"), 3)
    match = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
    assert found.longest[0].length == match.size
    assert found.longest[0].text in train


def test_words_in_spans_are_counted_once():
    """Against marking each word of each span that is long enough."""
    train, test = draw_documents(1, 5), draw_documents(2, 9)
    index = SpanIndex(train, "words")
    for least in (1, 3, 5):
        shared = 0
        for text in test:
            words, marked = text.split(), set()
            known = {gram for one in train for gram in ngrams(one.split(), least)}
            for place, gram in enumerate(ngrams(words, least)):
                marked |= set(range(place, place + least)) if gram in known else set()
            shared += len(marked)
        assert measure_overlap(test, index, least).shared == shared
    assert count_runs(numpy.array([], dtype=numpy.int64), 1) == 0


def test_spans_are_named_with_their_documents():
    copied = "one two three four five six"
    train = ["nothing here", f"x {copied} y", f"{copied} z"]
    test = ["other words only", f"p {copied} q", f"r {copied}", "nothing"]
    found = measure_overlap(test, SpanIndex(train, "words"), 4, [4])
    span = found.longest[0]
    assert (span.text, span.length) == (copied, 6)
    assert (span.test_document, span.test_documents) == (2, 2)
    assert (span.train_document, span.train_documents) == (2, 2)
    assert (found.shared, found.size, found.with_spans) == (12, 19, [2, 3])
    assert found.overlapping == [2, 3, 4]  # the last is a copy
    assert found.as_dict()["share"] == 12 / 19
    near = [NearDuplicate(test_document=1, train_document=1, similarity=0.9)]
    assert measure_overlap(test, SpanIndex(train, "words"), 4, (), near).overlapping == [1, 2, 3]


def test_a_text_without_spaces_is_compared_by_characters():
    train, test = ["山月不知心底事。" * 8], ["水風空落眼前花，" * 5 + "山月不知心底事。" * 3]
    assert choose_unit(test) == "characters"
    assert choose_unit(["a few words of a text", ""]) == "words"
    found = measure_overlap(test, SpanIndex(train, "characters"), 20)
    assert (found.longest[0].length, found.size) == (24, 64)
    assert found.longest[0].text == test[0][-24:]
    assert split_units(" a b\nc", "characters") == ["a", "b", "c"]


def test_duplicates_are_whole_documents():
    test = ["a b", "c", "  ", "d e", "a b"]
    assert find_duplicates(test, ["x", " a b\n", "", "d e f"]) == [1, 5]


def test_without_the_package_that_sorts_one_line_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydivsufsort", None)
    with pytest.raises(RecipeError, match=r"rung\[scale\]"):
        SpanIndex(["a b"], "words")
