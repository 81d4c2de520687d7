"""The entropy of toy-language, by recursion over its rules, against the code length of documents.

The rules are written here a second time, as sums: the expected bits and characters of each part.
Nothing of the grammar's own code is used but the lists of words.
"""

import functools
import math

import numpy
import pytest

from rung.data.toy_language import ToyLanguage
from rung.data.toy_lexicon import Lexicon
from rung.evaluation.metrics import confidence_interval

WORDS = Lexicon()
# Of one document: bits, characters, and how often a new name comes and a song is sung.
BITS, CHARACTER, NEW_NAME, CHANT = numpy.eye(4)
NOTHING = numpy.zeros(4)


def choose(*options):
    """The expected costs of a choice among (weight, cost)."""
    total = sum(weight for weight, _ in options)
    return sum(
        weight / total * (cost + BITS * math.log2(total / weight))
        for weight, cost in options
        if weight
    )


def text(word):
    """A word that is certain, and the space before it."""
    return CHARACTER * (len(word) + 1)


def uniform(words):
    return choose(*((1, text(word)) for word in words))


def zipf(words, ending=""):
    return choose(
        *((10**6 // (rank + 2), text(word + ending)) for rank, word in enumerate(words, 1))
    )


PREPOSITION, ADVERB = zipf(WORDS.prepositions), zipf(WORDS.adverbs)
ONE, MANY = zipf(WORDS.nouns), zipf(WORDS.nouns, "s")
A_NAME = CHARACTER * sum(len(name) + 1 for name in WORDS.names) / len(WORDS.names)
STOP = CHARACTER
NOTES = uniform(WORDS.notes)


def noun(one, many, left=2):
    adjectives = (2, zipf(WORDS.adjectives) + noun(one, many, left - 1)) if left else (0, NOTHING)
    return choose((3 * one, ONE), (2 * many, MANY), adjectives)


DETERMINERS = (
    (10, text("the") + noun(1, 1)),
    (6, zipf(WORDS.singular_determiners) + noun(1, 0)),
    (4, zipf(WORDS.plural_determiners) + noun(0, 1)),
)


def known(names):
    return A_NAME + BITS * math.log2(names) if names else NOTHING


@functools.cache
def someone(names):
    return choose(*DETERMINERS, (8, known(names)))


@functools.cache
def brackets(depth, place=0):
    """All that follows an opening bracket, from this place on."""
    if place == 4:
        return CHARACTER
    after = brackets(depth, place + 1)
    no_space = CHARACTER * (place == 0)
    opening = text("(") + BITS * math.log2(3) + brackets(depth + 1) if depth < 6 else NOTHING
    return choose(
        (3, ONE - no_space + after),
        (2, MANY - no_space + after),
        (2 * (depth < 6), opening - no_space + after),
        (6 * (place > 0), CHARACTER),
    )


@functools.cache
def song(known, length=0):
    """The notes, from this one on, and the closing quotation mark."""
    if length == 8:
        return CHARACTER
    note = NOTES - CHARACTER * (length == 0)
    if length < 4:
        new = note + song(False, length + 1)
    else:
        new = choose((3, note + song(False, length + 1)), (1, CHARACTER))
    return new * (1 - BITS) if known else new


@functools.cache
def action(names, another, left=3):
    """All that follows a verb and its object."""
    further = [
        (stems, text("and") + verb + action(names, False))
        for stems, verb in ((1, zipf(WORDS.intransitive, "es")),
                            (1, zipf(WORDS.transitive, "es") + someone(names)))
    ] if another else []  # fmt: skip
    phrase = PREPOSITION + someone(names) + action(names, another, left - 1) if left else NOTHING
    return choose((4 * (left > 0), phrase), *further, (7, STOP))


@functools.cache
def verbs(names, sung):
    """The classes of verbs, each with all that follows."""
    pack = text("packes") + text("(") + BITS * math.log2(3) + brackets(1) + STOP
    chant = text("chantes") + text('"') + song(sung) + STOP + CHANT
    return (
        (5, zipf(WORDS.intransitive, "es") + action(names, True)),
        (5, zipf(WORDS.transitive, "es") + someone(names) + action(names, True)),
        (1, pack),
        (1, chant),
    )


def after_subject(names, sung, left=3):
    verb = choose(*verbs(names, sung))
    phrase = PREPOSITION + someone(names) + after_subject(names, sung, left - 1) if left else 0
    return choose(
        (6 * (left > 0), phrase),
        (2, ADVERB + verb),
        (1, zipf(WORDS.intensifiers) + ADVERB + verb),
        *verbs(names, sung),
    )


def after_name(names, sung):
    single = ((2, ADVERB + choose(*verbs(names, sung))), *verbs(names, sung))
    two = text("and") + known(names - 1) + choose(*single)
    return choose((4 * (names > 1), two), *single)


@functools.cache
def clause(names, sung, of_names):
    after = after_subject(names, sung)
    return (*((weight, cost + after) for weight, cost in DETERMINERS),
            (of_names, known(names) + after_name(names, sung)))  # fmt: skip


@functools.cache
def new_name(names):
    return A_NAME + BITS * math.log2(len(WORDS.names) - names)


@functools.cache
def sentence(names, sung, may_end):
    """A sentence, or the end: its cost, and the probability of the end."""
    fronted = PREPOSITION + someone(names) + CHARACTER + choose(*clause(names, sung, 8))
    came = text("then") + text("came") + new_name(names) + STOP + NEW_NAME
    ends, comes = 2 * may_end, 2 * (names < 6)
    options = [*clause(names, sung, 14), (4, fronted), (comes, came), (ends, NOTHING)]
    return choose(*options), ends / (38 + comes + ends)


@functools.cache
def body(names, sung, number):
    """The bits and characters of all sentences from this number on."""
    if number == 60:
        return numpy.zeros(2)
    cost, ends = sentence(names, sung, number >= 5)
    new, chant = cost[2:]
    rest = (1 - ends - new - chant) * body(names, sung, number + 1)
    rest = rest + chant * body(names, True, number + 1)
    return cost[:2] + rest + (new * body(names + 1, sung, number + 1) if new else 0)


def introduction(names=0):
    cost = new_name(names)[:2]
    names += 1
    stop = STOP[:2] + body(names, False, 0)
    last = text("and")[:2] + new_name(names)[:2] + STOP[:2] + body(names + 1, False, 0)
    options = [(names == 1, stop), (names < 4, last)]
    if names < 3:
        options.append((1, CHARACTER[:2] + introduction(names)))
    return cost + sum(
        weight / total * (option + BITS[:2] * math.log2(total / weight))
        for total in [sum(weight for weight, _ in options)]
        for weight, option in options
        if weight
    )


def test_documents_cost_the_entropy_of_the_rules():
    bits, characters = introduction() + numpy.array([0, len("This is the tale of")])
    language = ToyLanguage()
    documents = [language.draw(11, number) for number in range(600)]
    costs, sizes = [language.code_length(text) for text in documents], [*map(len, documents)]
    for values, weights, expected in (
        (costs, [1] * len(costs), bits),
        (sizes, [1] * len(costs), characters),
        (costs, sizes, bits / characters),
    ):
        found = confidence_interval(values, weights)
        assert found.low < expected < found.high
    assert bits / characters == pytest.approx(0.9217, abs=5e-5)  # docs/evaluation.md has it
