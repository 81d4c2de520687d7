"""Learn byte pairs from distinct words and their counts, merge for merge as `tokenizers` does.

The library counts the words of a text itself, which takes most of its time. Here they are counted
before (`words.count_words`), and each merge changes all the words that it is in at once. Source:
Sennrich et al. 2016, section 3.2.
"""

import heapq
from collections.abc import Iterable

import numpy
from numpy.typing import NDArray

PAIR_SHIFT = 32  # a pair of ids is one number, which sorts as the pair does

_IntArray = NDArray[numpy.int64]
Merge = tuple[str, str]


def learn_merges(
    words: list[str], counts: _IntArray, tokens: list[str], vocab_size: int
) -> tuple[list[str], list[Merge]]:
    """Return the tokens with those that are learned, `vocab_size` in all, and the merges in order.

    `tokens` must hold every character of the words. The most frequent pair is merged next; of
    equally frequent ones that of the smallest ids.
    """
    tokens = list(tokens)
    ids = {token: id for id, token in enumerate(tokens)}
    merges: list[Merge] = []
    corpus = _SegmentedWords(words, counts, ids)
    queue = [(-total, pair, n, at) for n, (pair, total, at) in enumerate(corpus.count_pairs())]
    heapq.heapify(queue)
    pushed = len(queue)
    while queue and len(tokens) < vocab_size:
        negative, pair, number, at = queue[0]
        if -negative != (total := corpus.totals[pair]):
            heapq.heapreplace(queue, (-total, pair, number, at))
            continue
        heapq.heappop(queue)
        if total < 1:
            break
        left, right = divmod(pair, 1 << PAIR_SHIFT)
        token = tokens[left] + tokens[right]
        new = ids.setdefault(token, len(tokens))
        if new == len(tokens):
            tokens.append(token)
        merges.append((tokens[left], tokens[right]))
        for arisen, where in corpus.merge(left, right, new, at):
            if (total := corpus.totals[arisen]) > 0:
                heapq.heappush(queue, (-total, arisen, pushed, where))
                pushed += 1
    return tokens, merges


class _SegmentedWords:
    """Words as rows of ids, how often each occurs, and `totals`: how often each pair does.

    Word w is the ids from `starts[w]` on, `lengths[w]` of them.
    """

    def __init__(self, words: list[str], counts: _IntArray, ids: dict[str, int]) -> None:
        text = numpy.frombuffer("".join(words).encode("utf-32-le"), dtype=numpy.uint32)
        by_character = numpy.zeros(int(text.max(initial=0)) + 1, dtype=numpy.int64)
        for character in numpy.unique(text).tolist():
            by_character[character] = ids[chr(character)]
        self.ids = by_character[text]
        self.lengths = numpy.fromiter(map(len, words), dtype=numpy.int64, count=len(words))
        self.starts = numpy.cumsum(self.lengths) - self.lengths
        self.counts = counts
        self.totals: dict[int, int] = {}

    def count_pairs(self) -> list[tuple[int, int, _IntArray]]:
        """Count all pairs: each with its total, and the words that it is in."""
        word = numpy.repeat(numpy.arange(len(self.lengths)), self.lengths)
        inside = numpy.flatnonzero(word[1:] == word[:-1])
        pairs = self.ids[inside] << PAIR_SHIFT | self.ids[inside + 1]
        return [(pair, self.totals[pair], at) for pair, at in self._add(pairs, word[inside], 1)]

    def merge(
        self, left: int, right: int, new: int, words: _IntArray
    ) -> Iterable[tuple[int, _IntArray]]:
        """Merge a pair in some words; yield the pairs that arise, and the words they arise in."""
        words = numpy.unique(words)
        lengths = self.lengths[words]
        ends = numpy.cumsum(lengths)
        row = self.ids[self._find_places(words, lengths)]
        is_last = numpy.zeros(len(row) + 1, dtype=bool)  # in its word; so is what is before all
        is_last[ends - 1] = is_last[-1] = True
        hits = numpy.flatnonzero((row[:-1] == left) & (row[1:] == right) & ~is_last[: len(row) - 1])
        if left == right:
            hits = _leave_out_overlaps(hits)
        if not len(hits):
            return ()
        place = numpy.searchsorted(ends, hits, side="right")  # of the word among `words`
        arisen = self._change_totals(row, is_last, hits, words[place], (left, right, new))
        row[hits] = new
        kept = numpy.ones(len(row), dtype=bool)
        kept[hits + 1] = False
        lengths = lengths - numpy.bincount(place, minlength=len(words))
        self.ids[self._find_places(words, lengths)] = row[kept]
        self.lengths[words] = lengths
        return arisen

    def _find_places(self, words: _IntArray, lengths: _IntArray) -> _IntArray:
        """Find the places of the first ids of each word, as many as `lengths` says."""
        ends = numpy.cumsum(lengths)
        return numpy.repeat(self.starts[words] - ends + lengths, lengths) + numpy.arange(ends[-1])

    def _change_totals(
        self,
        row: _IntArray,
        is_last: NDArray[numpy.bool_],
        hits: _IntArray,
        words: _IntArray,
        merged: tuple[int, int, int],
    ) -> list[tuple[int, _IntArray]]:
        """Change the totals of the pairs beside those merged at `hits`, each in one of `words`.

        Returns the pairs that arise, and the words they arise in. A merged pair's own total stays,
        as the library leaves it: no further merge asks for it.
        """
        left, right, new = merged
        is_merged = numpy.zeros(len(row) + 1, dtype=bool)
        is_merged[hits] = True
        follows, precedes = ~is_last[hits - 1], ~is_last[hits + 1]
        at = hits[follows]
        before, after = row[at - 1], row[hits[precedes] + 2]
        before[is_merged[at - 2]] = new  # merged just now
        where = numpy.append(words[follows], words[precedes])
        lost = numpy.append(before << PAIR_SHIFT | left, right << PAIR_SHIFT | after)
        arisen = numpy.append(before << PAIR_SHIFT | new, new << PAIR_SHIFT | after)
        self._add(lost, where, -1)
        return self._add(arisen, where, 1)

    def _add(self, pairs: _IntArray, words: _IntArray, sign: int) -> list[tuple[int, _IntArray]]:
        """Add the counts of words to the totals of pairs in them; return each pair's words."""
        if not len(pairs):
            return []
        order = numpy.argsort(pairs, kind="stable")
        pairs, words = pairs[order], words[order]
        first = numpy.flatnonzero(numpy.append(True, pairs[1:] != pairs[:-1]))
        change = (sign * numpy.add.reduceat(self.counts[words], first)).tolist()
        distinct, totals = pairs[first].tolist(), self.totals
        for pair, by in zip(distinct, change, strict=True):
            totals[pair] = totals.get(pair, 0) + by
        ends = [*first[1:].tolist(), len(words)]
        return [
            (pair, words[begin:end])
            for pair, begin, end in zip(distinct, first.tolist(), ends, strict=True)
        ]


def _leave_out_overlaps(hits: _IntArray) -> _IntArray:
    """Leave out every second hit of a run: in `aaa` the first two are merged."""
    begins = numpy.append(True, numpy.diff(hits) > 1)[: len(hits)]
    run = numpy.maximum.accumulate(numpy.where(begins, hits, 0))
    return hits[(hits - run) % 2 == 0]
