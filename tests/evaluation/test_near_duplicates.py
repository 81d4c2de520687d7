"""Near duplicates: what MinHash proposes against the exact similarity of every pair."""

import random

import pytest

from rung.evaluation.near_duplicates import (
    LEAST_SIMILARITY,
    find_near_duplicates,
    make_shingles,
)

pytest.importorskip("datasketch")


def similarity(one, other):
    a, b = make_shingles(one), make_shingles(other)
    return len(a & b) / len(a | b)


def test_all_pairs_of_high_similarity_are_found_and_no_others():
    dice = random.Random(5)
    train = [[str(dice.randrange(500)) for _ in range(120)] for _ in range(12)]
    test = []
    for number, words in enumerate(train):
        changed = list(words)
        for place in range(0, number * 12, 12):  # each has one more word changed
            changed[place % len(changed)] = "other"
        test.append(changed)
    test += [["only", "three", "words"], [], train[3]]
    train += [["only", "three", "words"], []]
    found = {each.test_document - 1: each for each in find_near_duplicates(test, train)}
    for number, words in enumerate(test):
        exact = [similarity(words, other) for other in train if words and other]
        if max(exact, default=0) >= LEAST_SIMILARITY:
            assert found[number].similarity == max(exact)
            assert train[found[number].train_document - 1] == train[exact.index(max(exact))]
        else:
            assert number not in found
    assert {0, 1, 12, 14} <= set(found) < set(range(15))
