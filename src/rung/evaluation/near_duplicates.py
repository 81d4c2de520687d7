"""Near duplicates: documents that share most of their word 5-grams, found by MinHash.

MinHash (Broder 1997) with banding proposes pairs by the package `datasketch`; the Jaccard
similarity of each proposed pair is then computed exactly. The n-grams and the similarity are those
that are usual for training texts (Lee et al. 2022, section 4.2).
"""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SHINGLE_WORDS = 5
LEAST_SIMILARITY = 0.8
# A pair of this similarity is proposed every other time, one of `LEAST_SIMILARITY` next to always.
PROPOSED_SIMILARITY = 0.5
PERMUTATIONS = 128


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    """A test document, the training document that is most similar, and their Jaccard similarity.

    Documents are numbered from 1 in their split.
    """

    test_document: int
    train_document: int
    similarity: float


def can_find_near_duplicates() -> bool:
    """Whether the package that proposes pairs is installed, with all that it needs."""
    try:
        importlib.import_module("datasketch")
    except ImportError:
        return False
    return True


def make_shingles(units: Sequence[str]) -> set[str]:
    """Return the 5-grams of a document's words; of a shorter document, all of it."""
    count = max(1, len(units) - SHINGLE_WORDS + 1)
    return {" ".join(units[place : place + SHINGLE_WORDS]) for place in range(count)}


def find_near_duplicates(
    test: Iterable[Sequence[str]], train: Iterable[Sequence[str]]
) -> list[NearDuplicate]:
    """Find the test documents that a training document is nearly or wholly equal to.

    Documents are given as lists of words. Empty ones are no duplicates.
    """
    from datasketch import MinHashLSH

    proposed = MinHashLSH(threshold=PROPOSED_SIMILARITY, num_perm=PERMUTATIONS)
    shingles: dict[int, set[str]] = {}
    for number, units in enumerate(test, 1):
        if units:
            shingles[number] = make_shingles(units)
            proposed.insert(number, _sketch(shingles[number]))
    best: dict[int, NearDuplicate] = {}
    for place, units in enumerate(train, 1):
        if not units:
            continue
        there = make_shingles(units)
        for number in proposed.query(_sketch(there)):
            here = shingles[number]
            similarity = len(here & there) / len(here | there)
            if similarity >= LEAST_SIMILARITY and (
                number not in best or similarity > best[number].similarity
            ):
                best[number] = NearDuplicate(
                    test_document=number, train_document=place, similarity=similarity
                )
    return [best[number] for number in sorted(best)]


def _sketch(shingles: set[str]) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS)
    sketch.update_batch([shingle.encode() for shingle in shingles])
    return sketch
