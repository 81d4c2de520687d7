"""toy-language: text of a probabilistic grammar of our own, whose true entropy is known.

The documents of a seed and a size are the same bytes on every machine and under every Python. Their
exact probability is known (`toy_grammar`), and so the fewest bits that they can cost.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rung.data.toy_choices import Choice, SplitMix64, Words
from rung.data.toy_grammar import BEGIN_SONG, CLOSING, END_OF_DOCUMENT, END_SONG, Document, Grammar
from rung.errors import CorpusError

NAME = "toy-language"
SYNTAX = re.compile(rf"{NAME}(?:@(\d+(?:\.\d+)?)([KMG]B))?(?:#(\d+))?", re.IGNORECASE)
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
DEFAULT_BYTES = 3 * 10**6
FIRST_PROBE_SEED = 2**63  # those from here on are the probes'
VERSION = 1  # to be raised whenever the same seed gives other text

NO_SPACE_BEFORE = {".", ",", END_OF_DOCUMENT, END_SONG, *CLOSING.values()}
NO_SPACE_AFTER = {BEGIN_SONG, *CLOSING}
WORD = re.compile(r"[A-Za-z]+|[^A-Za-z\s]")
# In an error: words that are possible, and characters of the text before the place.
NAMED_CHOICES = 5
PLACE_CHARACTERS = 40


class WordCost(NamedTuple):
    """A word of a text, or its end as the empty word, and its bits under the grammar."""

    word: str
    bits: float


class ToyLanguage:
    """Draws documents of a grammar, and measures the probability of a text under it."""

    def __init__(self, grammar: Grammar | None = None) -> None:
        self.grammar = grammar or Grammar()

    def draw(self, seed: int, number: int) -> str:
        """Draw the document of this number, of all that the seed has."""
        return join_words(self.draw_words(SplitMix64(seed, number)))

    def draw_words(self, random: SplitMix64) -> list[str]:
        """Draw the words of a document; the last one is `END_OF_DOCUMENT`."""
        rule, words = Document(self.grammar).write(), []
        choice = next(rule)
        while True:
            words.append(choice.draw(random))
            try:
                choice = rule.send(words[-1])
            except StopIteration:
                return words

    def measure(self, text: str) -> list[WordCost]:
        """Return the bits of each word and of the end, which sum to -log2 of the probability.

        Raises `CorpusError` for a text that is not of the language: its probability is 0.
        """
        return [
            WordCost(word, math.log2(outcomes / favourable))
            for word, (favourable, outcomes) in self.find_odds(text)
        ]

    def find_odds(self, text: str) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield each word with its probability, a numerator and a denominator.

        Raises `CorpusError` as `measure` does.
        """
        words = split_words(text, self.grammar.names)
        rule = Document(self.grammar).write()
        choice = next(rule)
        for place, word in enumerate(words):
            odds = choice.odds(word)
            if not odds[0]:
                raise CorpusError(_explain(words[:place], word, choice))
            yield word, odds
            try:
                choice = rule.send(word)
            except StopIteration:
                break
        if join_words(words) != text:
            raise CorpusError(f"not a text of {NAME}: {_differ(text, join_words(words))}")

    def code_length(self, text: str) -> float:
        """Return the bits of a document and of its end: -log2 of its probability."""
        return math.fsum(cost.bits for cost in self.measure(text))


def parse_name(source: str) -> tuple[int, int] | None:
    """Return the bytes and the seed that `toy-language[@5MB][#SEED]` names.

    Returns None for another source. Raises `CorpusError` for a size or a seed that there is not.
    """
    if not source.startswith(NAME) or source[len(NAME) : len(NAME) + 1] not in ("", "@", "#"):
        return None
    if not (found := SYNTAX.fullmatch(source)):
        raise CorpusError(
            f"{source!r} names no size or seed of {NAME}: write {NAME}, {NAME}@5MB or {NAME}@5MB#1"
            f"; a size is in {', '.join(UNITS)}"
        )
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found[1] else DEFAULT_BYTES
    seed = int(found[3] or 0)
    if not size or seed >= FIRST_PROBE_SEED:
        raise CorpusError(f"{source!r}: the size must be above 0, and the seed below 2^63")
    return size, seed


def draw_documents(size: int, seed: int = 0) -> Iterator[str]:
    """Draw documents of the seed until they have `size` bytes; more begin with the same ones."""
    language, number = ToyLanguage(), 0
    while size > 0:
        text = language.draw(seed, number)
        size -= len(text)  # all characters are ASCII
        number += 1
        yield text


def join_words(words: Iterable[str]) -> str:
    """Write words as text: spaces between them, and a capital at the beginning of a sentence."""
    parts: list[str] = []
    before = "."
    for word in words:
        if parts and before not in NO_SPACE_AFTER and word not in NO_SPACE_BEFORE:
            parts.append(" ")
        parts.append(word[:1].upper() + word[1:] if before == "." else word)
        before = word
    return "".join(parts).replace(BEGIN_SONG, '"').replace(END_SONG, '"')


def split_words(text: str, names: Words) -> list[str]:
    """Split a text into its words and `END_OF_DOCUMENT`, the other way of `join_words`.

    A word that begins a sentence loses its capital, unless it is one of the names.
    """
    words: list[str] = []
    quoted = False
    for word in WORD.findall(text):
        if word == '"':
            quoted = not quoted
            word = BEGIN_SONG if quoted else END_SONG
        begins = not words or words[-1] == "."
        words.append(word[:1].lower() + word[1:] if begins and word not in names else word)
    return [*words, END_OF_DOCUMENT]


def _explain(before: list[str], word: str, choice: Choice) -> str:
    """Explain that a word is not possible: where it stands, and what could stand there."""
    possible = [_name_word(word) for word in itertools.islice(choice, NAMED_CHOICES + 1)]
    listed = ", ".join(possible[:NAMED_CHOICES]) + (" ..." if possible[NAMED_CHOICES:] else "")
    place = f"after {join_words(before)[-PLACE_CHARACTERS:]!r}" if before else "at first"
    return f"not a text of {NAME}: {place} comes {_name_word(word)}, and could come {listed}"


def _differ(text: str, written: str) -> str:
    """Say where a text is first written otherwise than the language would write its words."""
    pairs = enumerate(zip(text, written, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(text), len(written)))
    shown = slice(max(0, at - PLACE_CHARACTERS), at + NAMED_CHOICES)
    return f"{text[shown]!r} would be written {written[shown]!r}"


def _name_word(word: str) -> str:
    return repr(word) if word != END_OF_DOCUMENT else "the end"
