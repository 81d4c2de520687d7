"""Cut documents into train, validation and test splits by their places.

A place is a hash, so that adding text does not move a document from one split to another. A small
text holds out more, and moves some documents as it grows (`HeldOutFractions`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rung.data.store import (
    SPLITS,
    DocumentReader,
    count_utf8_bytes,
    read_batches,
    store_by_place,
    store_documents,
)
from rung.errors import CorpusError

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset

# A smaller test split says next to nothing.
MIN_TEST_BYTES = 4_000
MIN_TEST_DOCUMENTS = 10  # distinct ones
MAX_TEST_FRACTION = 0.2
AUTO_SPLIT = "cut "  # begins the key of splits that were cut here


@dataclass(frozen=True)
class HeldOutFractions:
    """Fractions of the documents for test and validation: those of the lowest places, test first.

    A text whose test split would be too small holds out twice the fraction, or four times
    (`enlarge`), and nothing between. So as the text grows, documents stay where they are but for
    those two moments; there they move from test to validation or train, and from validation to
    train, never back.
    """

    test: float
    validation: float

    @property
    def key(self) -> str:
        """The fractions as part of a cache key; other text would leave older caches unused."""
        return f"HeldOut(test={self.test}, validation={self.validation})"

    def enlarge(self) -> "HeldOutFractions | None":
        """Return twice the test fraction and at least half of that for validation.

        Returns None where that would be more than `MAX_TEST_FRACTION`.
        """
        test = 2 * self.test
        if test > MAX_TEST_FRACTION:
            return None
        return HeldOutFractions(test, max(self.validation, test / 2))


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """Documents to split: their reader, the key that changes when they do, and how to hold out.

    `held_out` is the fraction that the user asks for, or None to begin with `default` and enlarge
    it for a small text. `finer` reads the same text in more and shorter documents, for where they
    are too few; with `refine` also for where the test split would be too small.
    """

    source: str
    read: DocumentReader
    key: str
    held_out: float | None
    default: HeldOutFractions
    finer: tuple[DocumentReader, str] | None = None
    refine: bool = False

    @property
    def fractions(self) -> HeldOutFractions:
        """The fractions to begin with."""
        return self.default if self.held_out is None else HeldOutFractions(*[self.held_out] * 2)


def cut_splits(request: SplitRequest, folder: Path) -> tuple[dict[str, "Dataset"], str]:
    """Return the documents as splits, and the key of these splits.

    Empty lines are left out unless nothing is held out: all of them have the same place.
    """
    if request.held_out == 0:
        everything = store_documents(request.read, folder, request.key)
        return make_train_only(everything), f"all of {request.key}"
    key = f"full {request.key}"
    splits = store_splits(request.read, folder, key, request.fractions)
    if all(len(rows) for rows in splits.values()) and (
        request.held_out is not None or is_large_enough(splits["test"])
    ):
        return splits, f"{AUTO_SPLIT}{request.fractions.key} {key}"
    everything = store_documents(request.read, folder, key, leave_out_empty=True)
    fractions = _choose_fractions(everything, request)
    too_few = count_distinct(everything) < len(SPLITS)
    if request.refine and not too_few and request.held_out is None:
        splits = split_few_documents(everything, request.source, fractions)
        too_few = not is_large_enough(splits["test"])
    if request.finer and too_few:
        key = f"full {request.finer[1]}"
        everything = store_documents(request.finer[0], folder, key, leave_out_empty=True)
        fractions = _choose_fractions(everything, request)
    splits = split_few_documents(everything, request.source, fractions)
    return splits, f"{AUTO_SPLIT}{fractions.key} {key}"


def store_splits(
    read: DocumentReader, folder: Path, key: str, fractions: HeldOutFractions
) -> dict[str, "Dataset"]:
    """Store the documents that are not empty as splits by place; a split may be empty."""
    border = fractions.test + fractions.validation
    bounds = {
        "train": (border, 1.0),
        "validation": (fractions.test, border),
        "test": (0.0, fractions.test),
    }
    return store_by_place(read, folder, f"{key} {fractions.key}", bounds, leave_out_empty=True)


def split_few_documents(
    everything: "Dataset", source: str, fractions: HeldOutFractions
) -> dict[str, "Dataset"]:
    """Split few documents by place; the nearest ones fill a split that would be empty.

    Documents of one place (copies, or a group) stay on one side. Memory holds a few numbers for
    each document. Raises `CorpusError` where there are fewer places than splits.
    """
    import numpy

    if count_distinct(everything) < len(SPLITS):
        raise CorpusError(
            f"{source} is too little text to split into train, validation and test: "
            f"{_describe_shortage(everything)}; "
            "a rung that counts can take all of it, with --set held_out=0"
        )
    place = _places(everything)
    order = numpy.argsort(place, kind="stable")
    places, starts = numpy.unique(place[order], return_index=True)
    held_out = fractions.test + fractions.validation
    test = max(1, min((places < fractions.test).sum(), len(places) - 2))
    validation = max(test + 1, min((places < held_out).sum(), len(places) - 1))
    bounds = {"test": (0, starts[test]), "validation": (starts[test], starts[validation])}
    bounds["train"] = (starts[validation], len(place))
    return {
        name: everything.select(numpy.sort(order[low:high])) for name, (low, high) in bounds.items()
    }


def make_train_only(everything: "Dataset") -> dict[str, "Dataset"]:
    """Return all documents as train, and none as validation and test."""
    none = everything.select([])
    return {"train": everything, "validation": none, "test": none}


def is_large_enough(test: "Dataset") -> bool:
    """Return whether a test split has enough bytes and enough distinct documents."""
    size, distinct = 0, set()
    for batch in read_batches(test):
        for text in batch:
            size += len(text.encode())
            distinct.add(hash(text))
            if size >= MIN_TEST_BYTES and len(distinct) >= MIN_TEST_DOCUMENTS:
                return True
    return False


def count_distinct(everything: "Dataset") -> int:
    """Count the distinct places."""
    import numpy

    return len(numpy.unique(_places(everything)))


def find_train_threshold(splits: dict[str, "Dataset"], held_out: float) -> float:
    """Return the place from which on documents of a stream that are yet to come are trained on."""
    kept = _places(splits["train"]).min()
    held = max(_places(splits[name]).max() for name in ("validation", "test"))
    return float(min(kept, max(2 * held_out, math.nextafter(held, 1.0))))


def _choose_fractions(everything: "Dataset", request: SplitRequest) -> HeldOutFractions:
    """Return the smallest fractions whose test split is large enough, else the largest."""
    fractions = request.fractions
    if request.held_out is not None:
        return fractions
    place = _places(everything)
    while larger := fractions.enlarge():
        if is_large_enough(everything.select((place < fractions.test).nonzero()[0])):
            break
        fractions = larger
    return fractions


def _describe_shortage(everything: "Dataset") -> str:
    """Return what a text that cannot be split has, and what would help."""
    lines: set[str] = set()
    count = 0
    for batch in read_batches(everything):
        for line in filter(str.strip, "\n".join(batch).splitlines()):
            count += 1
            lines.add(line.strip())
    if len(lines) == 1 and count > 1:
        return f"all documents are equal, one line {count:,} times; give a text with other lines"
    if len(lines) == 2 < count and count_utf8_bytes(everything) >= 4_000:
        return f"only 2 of its {count:,} lines are different; give a text with other lines"
    documents, distinct = len(everything), count_distinct(everything)
    if distinct == 1 and documents > 1:
        return f"all {documents:,} documents are equal; give a text with other documents"
    counted = f"{documents:,} {'document' if documents == 1 else 'documents'}"
    copies = f", {distinct} of them different" if distinct < documents else ""
    return (
        f"{counted}{copies}, {count_utf8_bytes(everything):,} bytes; give at least 4,000 bytes, "
        "with blank lines between the paragraphs, or try --documents lines"
    )


def _places(everything: "Dataset") -> "numpy.ndarray":
    return everything.select_columns(["place"]).with_format("arrow")[:].column("place").to_numpy()
