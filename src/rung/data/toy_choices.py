"""Random choices with exact probabilities, in integers: the same on every machine and Python."""

import functools
import itertools
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence

MASK = 2**64 - 1
ZIPF_SCALE = 1_000_000
ZIPF_SHIFT = 2


class SplitMix64:
    """The pseudo-random generator SplitMix64 (Steele, Lea & Flood 2014), of any seed and number.

    Each number of a seed begins a sequence of its own, from which nothing else is needed.
    """

    def __init__(self, seed: int, number: int = 0) -> None:
        self.state = seed & MASK
        self.state = (self._next() + number) & MASK
        self.state = self._next()

    def below(self, limit: int) -> int:
        """Return an integer from 0 to below the limit, each equally likely (Lemire 2019)."""
        if limit == 1:
            return 0
        product = self._next() * limit
        if product & MASK < limit:
            unfair = (MASK + 1) % limit
            while product & MASK < unfair:
                product = self._next() * limit
        return product >> 64

    def _next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        mixed = (self.state ^ (self.state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK
        return mixed ^ (mixed >> 31)


class Words:
    """Words with integer weights; without weights, all are equally likely."""

    def __init__(self, words: Iterable[str], weights: Iterable[int] | None = None) -> None:
        self.words = tuple(words)
        self.weights = dict.fromkeys(self.words, 1)
        if weights is not None:
            self.weights = dict(zip(self.words, weights, strict=True))
        self.ends = list(itertools.accumulate(self.weights.values()))
        self.total = self.ends[-1] if self.ends else 0

    def __contains__(self, word: str) -> bool:
        return word in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def weight(self, word: str) -> int:
        """Return the weight of a word, 0 for one that is not among them."""
        return self.weights.get(word, 0)

    def draw(self, random: SplitMix64) -> str:
        return self.words[bisect_right(self.ends, random.below(self.total))]


class Unused:
    """The words that are not used yet, equally likely."""

    def __init__(self, words: Words, used: Collection[str]) -> None:
        self.among = words
        self.used = used
        self.total = len(words.words) - len(used)

    def __contains__(self, word: str) -> bool:
        return word in self.among and word not in self.used

    def __iter__(self) -> Iterator[str]:
        return (word for word in self.among if word not in self.used)

    def weight(self, word: str) -> int:
        """Return 1, or 0 for a word that is used or not among them."""
        return int(word in self)

    def draw(self, random: SplitMix64) -> str:
        """Draw among the places that are left, in the order of the words."""
        place = random.below(self.total)
        for used in sorted(self.among.words.index(word) for word in self.used):
            place += used <= place
        return self.among.words[place]


class Choice:
    """The next word: a class of words by its weight, then a word of the class by its own.

    A class without words is left out. No word is in two of the classes, so a word tells the class
    that it was drawn from.
    """

    def __init__(self, *classes: tuple[int, Words | Unused]) -> None:
        self.classes = [(weight, words) for weight, words in classes if weight and words.total]
        self.total = sum(weight for weight, _ in self.classes)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(words for _, words in self.classes)

    def odds(self, word: str) -> tuple[int, int]:
        """Return the probability of a word as a fraction: its numerator and denominator."""
        for weight, words in self.classes:
            if among := words.weight(word):
                return weight * among, self.total * words.total
        return 0, 1

    def draw(self, random: SplitMix64) -> str:
        place = random.below(self.total)
        for weight, words in self.classes:
            if place < weight:
                return words.draw(random)
            place -= weight
        raise AssertionError("a place below the total is in one of the classes")


@functools.cache
def single(word: str) -> Words:
    """Return the class of one word."""
    return Words([word])


@functools.cache
def only(word: str) -> Choice:
    """Return the choice that has one word."""
    return Choice((1, single(word)))


def zipf(words: Sequence[str]) -> Words:
    """Weight words by rank as in Zipf's law, shifted (Mandelbrot 1953): 1 / (rank + 2)."""
    ranks = range(1, len(words) + 1)
    return Words(words, (ZIPF_SCALE // (rank + ZIPF_SHIFT) for rank in ranks))
