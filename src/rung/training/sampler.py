"""The order in which a text is read: epoch after epoch, each a permutation whose every place is
found at once.

A run that goes on begins where it was left, however far in, without a pass over what was read; and
no process keeps eight bytes for each block, as a list of the epoch would. The permutation is a
Feistel network over the next power of four, walked until it lands on an item (Black & Rogaway 2002,
section 3).
"""

from collections.abc import Iterator

import numpy
from numpy.typing import NDArray
from torch.utils.data import Sampler

ROUNDS = 6
CHUNK = 1024  # places permuted at a time


class ResumableSampler(Sampler[int]):
    """Places `first` to `last` of an endless row of epochs over `items`; in their own order where
    `seed` is None.

    Its length is `last`: how far it goes, wherever it begins.
    """

    def __init__(self, items: int, *, seed: int | None, first: int, last: int) -> None:
        self.items = items
        self.seed = seed
        self.first = first
        self.last = last

    def __len__(self) -> int:
        return self.last

    def __iter__(self) -> Iterator[int]:
        place = self.first
        while place < self.last:
            epoch, begin = divmod(place, self.items)
            count = min(CHUNK, self.items - begin, self.last - place)
            places = numpy.arange(begin, begin + count)
            yield from (
                places if self.seed is None else permute(places, self.items, (self.seed, epoch))
            ).tolist()
            place += count


def permute(places: NDArray[numpy.int64], items: int, key: tuple[int, int]) -> NDArray[numpy.int64]:
    """What stands at these places of the permutation of `items` that `key` names."""
    half = numpy.uint64(max(1, ((items - 1).bit_length() + 1) // 2))
    mask = (numpy.uint64(1) << half) - numpy.uint64(1)
    keys = numpy.random.SeedSequence(key).generate_state(ROUNDS, numpy.uint64)
    found = places.astype(numpy.uint64)
    walking = numpy.arange(len(found))
    while len(
        walking
    ):  # fewer than four rounds on average: that much larger the power of four may be
        left, right = found[walking] >> half, found[walking] & mask
        for each in keys:
            left, right = right, left ^ (_mix(right + each) & mask)
        found[walking] = left << half | right
        walking = walking[found[walking] >= items]
    return found.astype(numpy.int64)


def _mix(values: NDArray[numpy.uint64]) -> NDArray[numpy.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of
    the output.
    """
    values = (values ^ values >> numpy.uint64(30)) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> numpy.uint64(27)) * numpy.uint64(0x94D049BB133111EB)
    return values ^ values >> numpy.uint64(31)
