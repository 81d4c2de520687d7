"""A suffix array: look up n-grams of a text, however long, without a list of them.

The suffixes of the text are sorted. All places where an n-gram occurs then stand together, as a
range; with one more token the n-gram has a range within it (Manber & Myers 1993; Liu et al. 2024,
section 3). Two neighbours that share k tokens and then differ are a change of what follows n-grams
of length k. The changes, sorted by k, give the number of different tokens after an n-gram without
reading them.
"""

from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from rung.errors import RecipeError
from rung.models.lookup import lower_bound
from rung.models.ngram.discounts import absolute_discount
from rung.models.ngram.windows import IntArray

DISCOUNTED_LENGTHS = (
    32  # tokens of context that discounts are estimated for; the last serves longer ones
)
COMPARED_AT_ONCE = 32  # tokens compared at once
COARSE_STRIDE = 64  # positions apart at which long matches are looked for first

SuffixRange = tuple[Tensor, Tensor]  # of each n-gram: the first suffix, the one after the last


@dataclass(frozen=True, kw_only=True)
class SortedSuffixes:
    """Suffixes in order: where each begins, and its tokens `left` to the end of its document.

    `shared` counts the first tokens that a suffix has in common with the one before.
    """

    places: IntArray
    left: IntArray
    shared: IntArray


def sort_suffixes(
    tokens: IntArray, starts: NDArray[numpy.int64], *, drop_ends: bool
) -> SortedSuffixes:
    """Sort the suffixes of `tokens` (N,), whose documents begin at `starts`.

    No suffix goes beyond its document. `drop_ends` leaves out those that are a document's last
    token alone: where one token opens and ends documents, nothing follows it there. Raises
    `RecipeError` where the package that sorts is missing, or the text is too long.
    """
    try:
        import pydivsufsort
    except ImportError as error:
        raise RecipeError(
            "n-grams of any length need a package that sorts suffixes: pip install 'rung[scale]'"
        ) from error
    if len(tokens) >= 2**31:
        raise RecipeError(
            f"{len(tokens):,} tokens are too many: n-grams of any length take less than "
            "2,147,483,648"
        )
    # A copy: the sorter refuses an array that it may not write to.
    text = numpy.array(tokens, dtype=numpy.uint32)
    places = pydivsufsort.divsufsort(text)
    shared = numpy.zeros(len(places), dtype=numpy.int32)
    shared[1:] = pydivsufsort.kasai(text, places)[:-1]
    ends = numpy.append(starts[1:], len(tokens))
    left = numpy.repeat(ends, numpy.diff(starts, append=len(tokens)))[places] - places
    if drop_ends:
        kept = left > 1
        # Each group is a suffix that is kept, with those before it that are dropped.
        groups = numpy.flatnonzero(numpy.append(True, kept[:-1]))
        shared = numpy.minimum.reduceat(shared, groups)[: kept.sum()]
        places, left = places[kept], left[kept]
    shared[1:] = numpy.minimum(shared[1:], numpy.minimum(left[1:], left[:-1]))
    return SortedSuffixes(places=places, left=left.astype(numpy.int32), shared=shared)


def estimate_length_discounts(
    unigrams: NDArray[numpy.int64], suffixes: SortedSuffixes
) -> list[float]:
    """The discounts after contexts of 0, 1, ... tokens, up to `DISCOUNTED_LENGTHS` of them.

    Each is estimated from how many n-grams of its length occur once and twice.
    """
    shared = numpy.append(suffixes.shared, 0)
    # N-grams of this length or shorter occur again.
    nearest = numpy.maximum(shared[:-1], shared[1:])
    once = _count_lengths(nearest, suffixes.left)
    outside = numpy.maximum(shared[:-2], shared[2:])  # of two neighbours, with those around them
    twice = _count_lengths(outside, shared[1:-1])
    lengths = range(2, min(DISCOUNTED_LENGTHS, int(suffixes.left.max())) + 1)
    return [
        absolute_discount(int((unigrams == 1).sum()), int((unigrams == 2).sum())),
        *(absolute_discount(int(once[length]), int(twice[length])) for length in lengths),
    ]


def _count_lengths(above: IntArray, upto: IntArray) -> NDArray[numpy.int64]:
    """For every length up to `DISCOUNTED_LENGTHS`, how many intervals (above, upto] hold it."""
    size = DISCOUNTED_LENGTHS + 2
    enter = numpy.bincount(numpy.minimum(above + 1, size - 1), minlength=size)
    leave = numpy.bincount(numpy.minimum(numpy.maximum(upto, above) + 1, size - 1), minlength=size)
    return numpy.cumsum(enter - leave)


class SuffixArray(nn.Module):
    """A text and its sorted suffixes, 12 bytes a token.

    The range of an n-gram that does not occur is empty.
    """

    tokens: Tensor  # the text, and -1 at its end
    suffixes: Tensor  # where each begins, sorted
    first: Tensor  # the first suffix that begins with each token
    changes: Tensor  # suffixes but the first, by how much they share with the one before
    first_change: Tensor  # the first of them for every such length

    def __init__(
        self, *, vocab_size: int, num_tokens: int, num_suffixes: int, longest_repeat: int
    ) -> None:
        super().__init__()
        sizes = {
            "tokens": num_tokens + 1,
            "suffixes": num_suffixes,
            "first": vocab_size + 1,
            "changes": num_suffixes,
            "first_change": longest_repeat + 2,
        }
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.int32))

    def fill(self, tokens: IntArray, suffixes: SortedSuffixes) -> None:
        """Store a text and its suffixes, as `sort_suffixes` returns them."""
        self.tokens[:-1] = torch.from_numpy(tokens.astype(numpy.int32))
        self.tokens[-1] = -1
        self.suffixes.copy_(torch.from_numpy(suffixes.places))
        begin = numpy.bincount(tokens[suffixes.places], minlength=len(self.first) - 1)
        self.first[1:] = torch.from_numpy(numpy.cumsum(begin))
        shared = suffixes.shared[1:]
        self.changes[:-1] = torch.from_numpy(numpy.argsort(shared, kind="stable") + 1)
        ends = numpy.cumsum(numpy.bincount(shared, minlength=len(self.first_change) - 1))
        self.first_change[1:] = torch.from_numpy(ends)

    def begin(self, tokens: Int[Tensor, " N"]) -> SuffixRange:
        """Find where single tokens occur."""
        return self.first[tokens], self.first[tokens + 1]

    def extend(
        self, low: Tensor, high: Tensor, length: Int[Tensor, " N"] | int, tokens: Int[Tensor, " N"]
    ) -> SuffixRange:
        """Find where n-grams of `length` tokens, none of an empty range, occur with one more."""

        def read(suffixes: Tensor) -> Tensor:
            return self.tokens[self.suffixes[suffixes] + length]

        first = lower_bound(read, low, high, tokens)
        return first, lower_bound(read, first, high, tokens + 1)

    def find_changes(
        self, low: Tensor, high: Tensor, length: Int[Tensor, " N"] | int
    ) -> SuffixRange:
        """Find the changes of the token after n-grams of `length` tokens, as a range of `changes`.

        There is one more different token than there are changes.
        """
        length = (
            torch.as_tensor(length, device=low.device)
            .clamp(max=len(self.first_change) - 2)
            .expand_as(low)
        )
        begin, end = self.first_change[length], self.first_change[length + 1]
        begin = lower_bound(self.changes.__getitem__, begin, end, low + 1)
        return begin, lower_bound(self.changes.__getitem__, begin, end, high)

    def find_longest_prefix(
        self, tokens: Int[Tensor, " N"], at: Int[Tensor, " M"], until: Int[Tensor, " M"]
    ) -> tuple[Tensor, SuffixRange]:
        """Find the longest n-gram from `at` on, and not beyond `until`, that occurs.

        Returns its length, and where it occurs. The search goes down the suffix tree: where all
        occurrences go on alike, many tokens are compared at once.
        """
        length = torch.zeros_like(at)
        low, high = torch.zeros_like(at), torch.full_like(at, len(self.suffixes))
        going = torch.nonzero(at < until)[:, 0]
        while len(going):
            here, first, last = length[going], low[going], high[going] - 1
            place, other = self.suffixes[first] + here, self.suffixes[last] + here
            left = until[going] - at[going] - here
            alike = _common_prefix_length(tokens, at[going] + here, self.tokens, place, left)
            together = _common_prefix_length(self.tokens, place, self.tokens, other, alike)
            length[going] = here + together
            # The others are at their end.
            going = going[(together < alike) | ((alike < left) & (first < last))]
            wanted = tokens[at[going] + length[going]]
            first, last = self.extend(low[going], high[going], length[going], wanted)
            going, first, last = going[last > first], first[last > first], last[last > first]
            length[going] += 1
            low[going], high[going] = first.long(), last.long()
        return length, (low, high)

    def longest_match(
        self, tokens: Int[Tensor, " N"], until: Int[Tensor, " N"]
    ) -> Int[Tensor, " N"]:
        """At every position, the length of the longest n-gram ending there that occurs.

        The length includes the token at the position. No n-gram goes beyond `until`, which must not
        fall. A match that begins later ends no earlier: between two positions whose matches end at
        one place, all do, so copied text is not compared again and again.
        """
        size = len(tokens)
        where = torch.arange(size, device=tokens.device)
        end = where.clone()
        rough = torch.cat([where[::COARSE_STRIDE], where[-1:]]).unique()
        end[rough] = rough + self.find_longest_prefix(tokens, rough, until[rough])[0]
        following = torch.bucketize(where, rough)
        before, after = rough[(following - 1).clamp(min=0)], rough[following]
        end = torch.where(end[before] == end[after], end[after], end)
        fine = where[(end[before] != end[after]) & (where != after)]
        end[fine] = fine + self.find_longest_prefix(tokens, fine, until[fine])[0]
        return (where + 1 - torch.searchsorted(end, where + 1)).clamp(min=0)


def _common_prefix_length(
    left: Tensor, left_at: Tensor, right: Tensor, right_at: Tensor, limit: Tensor
) -> Tensor:
    """Count the tokens that are the same from these places on, up to `limit`."""
    alike = torch.zeros_like(limit)
    going = torch.nonzero(limit > 0)[:, 0]
    block = torch.arange(COMPARED_AT_ONCE, device=limit.device)
    while len(going):
        ahead = alike[going, None] + block
        one = left[(left_at[going, None] + ahead).clamp(max=len(left) - 1)]
        same = (one == right[(right_at[going, None] + ahead).clamp(max=len(right) - 1)]) & (
            ahead < limit[going, None]
        )
        count = same.long().cumprod(dim=1).sum(dim=1)
        alike[going] += count
        going = going[count == COMPARED_AT_ONCE]
    return alike
