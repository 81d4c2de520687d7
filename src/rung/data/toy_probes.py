"""Probes of toy-language: minimal pairs of what a model must keep in mind, and for how long.

Each is the beginning of a document in which one word is wrong: a verb of the other number, a
closing bracket of another kind, or a name that was not introduced. Both members are equally long,
and the wrong one is impossible in the language. They are drawn from seeds that no corpus has.
"""

import itertools
from collections.abc import Iterator

from rung.data.toy_choices import Choice, SplitMix64, Words, single
from rung.data.toy_grammar import (
    BEGIN_SONG,
    CLOSING,
    END_OF_DOCUMENT,
    PLURAL,
    SINGULAR,
    Grammar,
)
from rung.data.toy_language import FIRST_PROBE_SEED, ToyLanguage, join_words

PAIRS = 120  # of each distance or depth; each of the kinds that are taken in turn is as frequent
AGREEMENT_DISTANCES = range(1, 13)  # words from the noun to its verb
BRACKET_DEPTHS = range(1, 7)  # of the innermost brackets, of which the outermost are closed last
RECALL_DISTANCES = (1, 2, 5, 10, 20, 50, 100, 200)  # words from the name to the same name
POOL_DOCUMENTS = 60  # whose sentences stand between a name and its recall
FILLER_LENGTHS = (4, 12)  # words of one of several such sentences

Pair = tuple[list[str], list[str]]


def toy_language_probes(count: int = PAIRS) -> list[dict[str, str]]:
    """Return `count` pairs for each distance and depth: good, bad, paradigm, phenomenon."""
    grammar = Grammar()
    makers = (
        ("agreement", "distance", AGREEMENT_DISTANCES, _AgreementProbes(grammar)),
        ("brackets", "depth", BRACKET_DEPTHS, _BracketProbes(grammar)),
        ("recall", "distance", RECALL_DISTANCES, _RecallProbes(grammar)),
    )
    rows = []
    for phenomenon, measure, values, maker in makers:
        for value, number in itertools.product(values, range(count)):
            good, bad = maker.draw(value, number)
            rows.append(
                {
                    "good": join_words(good),
                    "bad": join_words(bad),
                    "paradigm": f"{phenomenon} at {measure} {value}",
                    "phenomenon": phenomenon,
                }
            )
    return rows


class _Probes:
    """Draws parts of the language's sentences."""

    seed = FIRST_PROBE_SEED

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.random = SplitMix64(self.seed)

    def draw_one(self, words: Words) -> str:
        return words.draw(self.random)

    def introduce(self, count: int) -> list[str]:
        """Draw a first sentence with so many names."""
        names: list[str] = []
        while len(names) < count:
            name = self.draw_one(self.grammar.names)
            names += [name] * (name not in names)
        listed = [part for name in names[:-1] for part in (name, ",")][:-1]
        joined = [*listed, "and", names[-1]] if listed else names
        return ["this", "is", "the", "tale", "of", *joined, "."]

    def draw_noun(self, number: int, adjectives: int = 0) -> list[str]:
        """Draw a determiner, so many adjectives, and a noun of that number."""
        grammar = self.grammar
        determiner = Choice((10, single("the")), ((6, 4)[number], grammar.determiners[number]))
        return [
            determiner.draw(self.random),
            *(self.draw_one(grammar.adjectives) for _ in range(adjectives)),
            self.draw_one(grammar.nouns[number]),
        ]


class _AgreementProbes(_Probes):
    """A verb of the other number than its subject's.

    Subjects are of either number in turn, and so are the nouns that stand between.
    """

    def draw(self, distance: int, number: int) -> Pair:
        """Draw a pair whose verb stands so many words behind its noun."""
        grammar, right = self.grammar, (SINGULAR, PLURAL)[number % 2]
        phrases, adverbs = self._choose_parts(distance - 1)
        before = [*self.introduce(1), *self.draw_noun(right)]
        for length in phrases:
            before.append(self.draw_one(grammar.prepositions))
            before += self.draw_noun((SINGULAR, PLURAL)[number // 2 % 2], length - 3)
        before += [self.draw_one(grammar.intensifiers)] * (adverbs == 2)
        before += [self.draw_one(grammar.adverbs)] * (adverbs > 0)
        verbs = [grammar.verbs[n].intransitive for n in (right, 1 - right)]
        verb = self.draw_one(verbs[0])
        wrong = verbs[1].words[verbs[0].words.index(verb)]
        return [*before, verb, "."], [*before, wrong, "."]

    def _choose_parts(self, words: int) -> tuple[tuple[int, ...], int]:
        """Choose the lengths of the phrases and of the adverbs that have so many words in all."""
        limits = self.grammar.limits
        parts = [
            (lengths, adverbs)
            for count in range(limits.phrases + 1)
            for lengths in itertools.product(range(3, 4 + limits.adjectives), repeat=count)
            for adverbs in range(3)
            if sum(lengths) + adverbs == words
        ]
        return parts[self.random.below(len(parts))]


class _BracketProbes(_Probes):
    """The outermost of nested brackets, closed by a bracket of another kind.

    Each kind is the right and the wrong one in turn, so that preferring a kind does not help.
    """

    seed = FIRST_PROBE_SEED + 1

    def draw(self, depth: int, number: int) -> Pair:
        """Draw a pair with brackets of so many levels."""
        right = (SINGULAR, PLURAL)[number % 2]
        inside = self._draw_things(1)
        for _ in range(depth - 1):
            opening = self.draw_one(self.grammar.openings)
            inside = [opening, *inside, CLOSING[opening]]
            inside = [*self._draw_things(0), *inside, *self._draw_things(0)]
        kinds = list(itertools.permutations(CLOSING, 2))
        opening, other = kinds[number % len(kinds)]
        before = [*self.introduce(1), *self.draw_noun(right)]
        before += [*self.grammar.verbs[right].pack, opening, *inside]
        return [*before, CLOSING[opening], "."], [*before, CLOSING[other], "."]

    def _draw_things(self, least: int) -> list[str]:
        """Draw nouns, `least` of them or one more."""
        count = least + self.random.below(2)
        return [self.draw_one(self.grammar.nouns[self.random.below(2)]) for _ in range(count)]


class _RecallProbes(_Probes):
    """A name that was not introduced in the place of one that was."""

    seed = FIRST_PROBE_SEED + 2

    def __init__(self, grammar: Grammar) -> None:
        super().__init__(grammar)
        self.pool: dict[int, list[list[str]]] = {}
        for sentence in self._draw_sentences():
            self.pool.setdefault(_count_words(sentence), []).append(sentence)

    def _draw_sentences(self) -> Iterator[list[str]]:
        """Draw documents, and yield their sentences without names, songs and brackets."""
        language = ToyLanguage(self.grammar)
        for number in range(POOL_DOCUMENTS):
            sentence: list[str] = []
            for word in language.draw_words(SplitMix64(self.seed, number)):
                sentence.append(word)
                if word in (".", END_OF_DOCUMENT):
                    if self._is_plain(sentence):
                        yield sentence
                    sentence = []

    def _is_plain(self, sentence: list[str]) -> bool:
        excluded = (self.grammar.names, (BEGIN_SONG, END_OF_DOCUMENT), CLOSING)
        return not any(word in words for words in excluded for word in sentence)

    def draw(self, distance: int, number: int) -> Pair:
        """Draw a pair whose name stands so many words behind the last of the first sentence."""
        grammar, between = self.grammar, distance - 1
        first = self.introduce(1 + number % 3)
        name = first[-2]
        # No sentence has one word: at this distance a phrase opens the sentence of the name.
        opens = between == 1
        filler = [] if opens else self._fill(between)
        before = [*first, *filler, *[self.draw_one(grammar.prepositions)] * opens]
        after = [",", *self.draw_noun(SINGULAR)] * opens
        after += [self.draw_one(grammar.verbs[SINGULAR].intransitive), "."]
        others = Words(
            other for other in grammar.names if len(other) == len(name) and other not in first
        )
        return [*before, name, *after], [*before, self.draw_one(others), *after]

    def _fill(self, words: int) -> list[str]:
        """Draw sentences of so many words in all, by chance but for the last one."""
        least, most = FILLER_LENGTHS
        filled: list[str] = []
        while words:
            fitting = [n for n in sorted(self.pool) if least <= n <= most and words - n >= least]
            length = fitting[self.random.below(len(fitting))] if words > most else words
            filled += self.pool[length][self.random.below(len(self.pool[length]))]
            words -= length
        return filled


def _count_words(words: list[str]) -> int:
    """Count words, without punctuation."""
    return sum(word.isalpha() for word in words)
