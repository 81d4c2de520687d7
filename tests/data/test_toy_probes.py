"""Probes of toy-language: minimal pairs at each distance and depth, the bad one impossible."""

import hashlib
import itertools
import json
from collections import Counter

import pytest

from rung.data.pairs import read_pairs
from rung.data.toy_language import ToyLanguage, draw_documents, join_words, split_words
from rung.data.toy_probes import RECALL_DISTANCES, toy_language_probes
from rung.errors import CorpusError

LANGUAGE = ToyLanguage()
FINGERPRINT = "2274fc78f043ed27"


@pytest.fixture(scope="module")
def probes():
    """Some pairs of each paradigm, their sentences as words."""
    return [
        row
        | {member: split_words(row[member], LANGUAGE.grammar.names) for member in ("good", "bad")}
        for row in toy_language_probes(8)
    ]


def place_of(row):
    """The place of the word that differs."""
    places = [
        n for n, (good, bad) in enumerate(zip(row["good"], row["bad"], strict=True)) if good != bad
    ]
    assert len(places) == 1
    return places[0]


def count_words(words):
    return sum(word.isalpha() for word in words)


def test_the_probes_are_the_same_everywhere():
    rows = toy_language_probes()
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == FINGERPRINT
    assert Counter(row["phenomenon"] for row in rows) == {
        "agreement": 1440, "brackets": 720, "recall": 960,
    }  # fmt: skip
    assert set(Counter(row["paradigm"] for row in rows).values()) == {120}
    assert all(len(row["good"]) == len(row["bad"]) for row in rows)


def test_no_probe_is_the_beginning_of_a_training_document():
    beginnings = {text.split(".")[1] for text in draw_documents(100_000)}
    assert not beginnings & {row["good"].split(".")[1] for row in toy_language_probes(8)}


def test_the_good_member_begins_a_document_and_the_bad_one_none(probes):
    for row in probes:
        place = place_of(row)
        for member, possible in (("good", True), ("bad", False)):
            odds = []
            try:
                odds.extend(LANGUAGE.find_odds(join_words(row[member])))
            except CorpusError as error:
                assert "comes the end" in str(error) or not possible
            assert (len(odds) >= len(row[member]) - 1) == possible
            assert possible or len(odds) == place


def test_distances_and_depths_are_what_they_say(probes):
    for row in probes:
        words, place, value = row["good"], place_of(row), int(row["paradigm"].split()[-1])
        kind = row["phenomenon"]
        if kind == "recall":
            first = words.index(words[place])
            assert words.index(".") == first + 1
            assert count_words(words[first + 1 : place + 1]) == value
        elif kind == "brackets":
            opening = next(n for n, word in enumerate(words) if word in "([{")
            depths = [
                sum((word in "([{") - (word in ")]}") for word in words[: n + 1])
                for n in range(len(words) - 1)
            ]
            assert max(depths) == value
            assert depths[place] == 0 and min(depths[opening:place]) == 1
        else:
            nouns = [
                n
                for n, word in enumerate(words)
                if any(word in group for group in LANGUAGE.grammar.nouns)
            ]
            assert place - nouns[0] == value
    assert {
        int(row["paradigm"].split()[-1]) for row in probes if row["phenomenon"] == "recall"
    } == set(RECALL_DISTANCES)


def test_guessing_by_the_nearest_noun_is_right_half_of_the_time():
    singular, plural = LANGUAGE.grammar.nouns
    probes = [row for row in toy_language_probes() if row["phenomenon"] == "agreement"]
    for distance in (4, 8, 12):
        goods = [r["good"] for r in probes if r["paradigm"] == f"agreement at distance {distance}"]
        words = [good.rstrip(".").split() for good in goods]
        nearest = [[w for w in row if w in singular or w in plural][-1] for row in words]
        pluralities = [
            (w in plural, row[-1].endswith("en")) for w, row in zip(nearest, words, strict=True)
        ]
        assert Counter(pluralities) == dict.fromkeys(itertools.product((False, True), repeat=2), 30)


def test_they_are_named_as_pairs():
    found = read_pairs("toy-language")
    assert found == read_pairs("toy-language@5MB#1")
    with pytest.raises(CorpusError, match="leave it out"):
        read_pairs("toy-language", encoding="utf-8")
    assert found.describe() == "3,120 pairs, 26 paradigms, 3 phenomena of toy-language"
    assert [pair.paradigm for pair in found.pairs[::120]][:3] == [
        f"agreement at distance {distance}" for distance in (1, 2, 3)
    ]
