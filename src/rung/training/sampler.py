"""A sampler that begins at any row of any epoch at once, each epoch a permutation of its own.

A run that continues makes no pass over the rows that it has read, and no process keeps a list of an
epoch's rows. The permutation is a Feistel network over the next power of four, walked until it
lands on an item (Black & Rogaway 2002, section 3).
"""

from collections.abc import Iterator

import numpy
from numpy.typing import NDArray
from torch.utils.data import Sampler

ROUNDS = 6
CHUNK = 1024  # places permuted at a time


class ResumableSampler(Sampler[int]):
    """Samples places `first` to `last` of an endless sequence of epochs over `items`.

    Where `seed` is None an epoch reads the items in order. The length is `last`, wherever it
    begins. Where the items of all epochs differ, `numbers_epochs`: those of the second begin with
    `items`, and so on.
    """

    def __init__(
        self, items: int, *, seed: int | None, first: int, last: int, numbers_epochs: bool = False
    ) -> None:
        self.items = items
        self.seed = seed
        self.first = first
        self.last = last
        self.numbers_epochs = numbers_epochs

    def __len__(self) -> int:
        return self.last

    def __iter__(self) -> Iterator[int]:
        place = self.first
        while place < self.last:
            epoch, begin = divmod(place, self.items)
            count = min(CHUNK, self.items - begin, self.last - place)
            places = numpy.arange(begin, begin + count)
            if self.seed is not None:
                places = permute(places, self.items, (self.seed, epoch))
            if self.numbers_epochs:
                places = places + epoch * self.items
            yield from places.tolist()
            place += count


def permute(places: NDArray[numpy.int64], items: int, key: tuple[int, int]) -> NDArray[numpy.int64]:
    """Return the items at these places of the permutation that `key` names."""
    half = numpy.uint64(max(1, ((items - 1).bit_length() + 1) // 2))
    mask = (numpy.uint64(1) << half) - numpy.uint64(1)
    keys = numpy.random.SeedSequence(key).generate_state(ROUNDS, numpy.uint64)
    found = places.astype(numpy.uint64)
    walking = numpy.arange(len(found))
    # The power of four is less than four times as large, so the mean of the walks is below four.
    while len(walking):
        left, right = found[walking] >> half, found[walking] & mask
        for each in keys:
            left, right = right, left ^ (_mix(right + each) & mask)
        found[walking] = left << half | right
        walking = walking[found[walking] >= items]
    return found.astype(numpy.int64)


def _mix(values: NDArray[numpy.uint64]) -> NDArray[numpy.uint64]:
    """Mix the bits, with the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ values >> numpy.uint64(30)) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> numpy.uint64(27)) * numpy.uint64(0x94D049BB133111EB)
    return values ^ values >> numpy.uint64(31)
