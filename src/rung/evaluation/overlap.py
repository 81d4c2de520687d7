"""Overlap: spans of a text that stand word for word in another, found in its sorted suffixes.

A token here is a word between white space, so that the figures do not depend on a tokenizer; in a
text with next to no spaces it is a character. By default a span counts from 13 words on (Brown et
al. 2020, appendix C), and a document overlaps where at least a fifth of its words stand in such
spans (Touvron et al. 2023, Llama 2, section A.6).
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy
import torch
from numpy.typing import NDArray

from rung.evaluation.metrics import MAX_BYTES_PER_WORD
from rung.evaluation.near_duplicates import NearDuplicate
from rung.models.ngram.suffix_array import SuffixArray, sort_suffixes

Unit = Literal["words", "characters"]

LEAST_SPANS: dict[str, int] = {"words": 13, "characters": 50}  # the spans that count, by unit
OVERLAPPING_SHARE = 0.2  # of a document's words in such spans, from which on it overlaps
MAX_SHOWN_SPANS = 5
# Ids that no word has: what opens a document, and a word that the text lacks.
DOCUMENT_OPENING, UNKNOWN_WORD, FIRST_WORD = 0, 1, 2


def choose_unit(texts: Iterable[str]) -> Unit:
    """Return `words`, or `characters` for a text with next to no spaces."""
    sizes = [(len(text.encode()), len(text.split())) for text in texts]
    size, words = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0, 0)
    return "characters" if size > MAX_BYTES_PER_WORD * words else "words"


def split_units(text: str, unit: Unit) -> list[str]:
    """Cut a text into its words, or into its characters but white space."""
    words = text.split()
    return words if unit == "words" else list("".join(words))


def count_runs(longest: NDArray[numpy.int64], length: int) -> int:
    """Count the words that stand in spans of at least `length`.

    `longest` (words,) is the longest span that ends at each word of a document.
    """
    ends = numpy.flatnonzero(longest >= length)
    changes = numpy.zeros(len(longest) + 1, dtype=numpy.int64)
    numpy.add.at(changes, ends + 1 - longest[ends], 1)
    numpy.add.at(changes, ends + 1, -1)
    return int((numpy.cumsum(changes) > 0).sum())


class SpanIndex:
    """Documents in which spans of words are looked up. Raises `RecipeError` as `sort_suffixes`."""

    def __init__(self, texts: Iterable[str], unit: Unit) -> None:
        self.unit: Unit = unit
        self.ids: dict[str, int] = {}
        tokens, starts = array("i"), array("q")
        for text in texts:
            starts.append(len(tokens))
            tokens.append(DOCUMENT_OPENING)
            # The id of a new word is evaluated before the word is added.
            tokens.extend(
                self.ids.setdefault(word, len(self.ids) + FIRST_WORD)
                for word in split_units(text, unit)
            )
        self.starts = numpy.frombuffer(starts, dtype=numpy.int64)
        ids = numpy.frombuffer(tokens, dtype=numpy.int32)
        suffixes = sort_suffixes(ids, self.starts, drop_ends=False)
        self.suffixes = SuffixArray(
            vocab_size=len(self.ids) + FIRST_WORD,
            num_tokens=len(ids),
            num_suffixes=len(suffixes.places),
            longest_repeat=int(suffixes.shared.max()),
        )
        self.suffixes.fill(ids, suffixes)

    @torch.no_grad()
    def match(self, texts: Iterable[str]) -> list[NDArray[numpy.int64]]:
        """Return for each text the longest span ending at each of its words that occurs here."""
        rows = [self._encode(split_units(text, self.unit)) for text in texts]
        sizes = torch.tensor([len(row) for row in rows])
        if not int(sizes.sum()):
            return [numpy.zeros(0, dtype=numpy.int64) for _ in rows]
        until = sizes.cumsum(0).repeat_interleave(sizes)
        longest = self.suffixes.longest_match(torch.cat(rows), until)
        return [each.numpy() for each in longest.split(sizes.tolist())]

    @torch.no_grad()
    def find_documents(self, words: Sequence[str]) -> list[int]:
        """Return the places of the documents that hold this span, in their order."""
        size = torch.tensor([len(words)])
        length, (low, high) = self.suffixes.find_longest_prefix(
            self._encode(words), torch.zeros_like(size), size
        )
        if int(length) < len(words):
            return []
        places = self.suffixes.suffixes[int(low) : int(high)].numpy()
        found = numpy.searchsorted(self.starts, places, side="right") - 1
        return numpy.unique(found).tolist()

    def _encode(self, words: Iterable[str]) -> torch.Tensor:
        return torch.tensor([self.ids.get(word, UNKNOWN_WORD) for word in words], dtype=torch.long)


@dataclass(frozen=True, kw_only=True)
class SharedSpan:
    """A span of the test text that stands in the training text.

    Documents are numbered from 1 in their split. The first of either split is named, and how many
    hold the span.
    """

    length: int
    text: str
    test_document: int
    test_documents: int
    train_document: int
    train_documents: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of the test text stands in the training text. Documents are numbered from 1.

    `near_duplicates` is None where they were not looked for.
    """

    unit: Unit
    least: int  # the length from which on a span counts
    documents: int  # of the test text
    size: int  # of the test text, in its unit
    shared: int  # of them, in spans that count
    with_spans: list[int]  # the documents that hold one
    overlapping: list[int]  # the documents of which `OVERLAPPING_SHARE` is shared, or copies
    duplicates: list[int]
    near_duplicates: list[NearDuplicate] | None
    longest: list[SharedSpan]

    @property
    def share(self) -> float:
        """The share of the words that stand in spans that count."""
        return self.shared / max(self.size, 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for `--json`."""
        return asdict(self) | {"share": self.share}


def measure_overlap(
    test: Sequence[str],
    index: SpanIndex,
    least: int,
    duplicates: Sequence[int] = (),
    near_duplicates: Sequence[NearDuplicate] | None = None,
) -> Overlap:
    """Measure how much of the documents `test` stands in those of `index`.

    Spans count from `least` words on. `duplicates` are the numbers of the documents that the
    training text has too, `near_duplicates` those that it nearly has.
    """
    matches = index.match(test)
    shared = [count_runs(longest, least) for longest in matches]
    copies = {*duplicates, *(each.test_document for each in near_duplicates or ())}
    overlapping = {
        number
        for number, (count, longest) in enumerate(zip(shared, matches, strict=True), 1)
        if count and count >= OVERLAPPING_SHARE * len(longest)
    }
    return Overlap(
        unit=index.unit,
        least=least,
        documents=len(test),
        size=sum(map(len, matches)),
        shared=sum(shared),
        with_spans=[number for number, count in enumerate(shared, 1) if count],
        overlapping=sorted(overlapping | copies),
        duplicates=list(duplicates),
        near_duplicates=None if near_duplicates is None else list(near_duplicates),
        longest=list(find_longest_spans(test, index, matches)),
    )


def find_duplicates(test: Iterable[str], train: Iterable[str]) -> list[int]:
    """Return the numbers, from 1, of the test documents that are training documents too.

    White space around a document does not count, nor does a document of nothing else.
    """
    wanted: dict[str, list[int]] = {}
    for number, text in enumerate(test, 1):
        if text.strip():
            wanted.setdefault(text.strip(), []).append(number)
    seen = {text for text in map(str.strip, train) if text in wanted}
    return sorted(number for text in seen for number in wanted[text])


def find_longest_spans(
    test: Sequence[str], index: SpanIndex, matches: Sequence[NDArray[numpy.int64]]
) -> Iterator[SharedSpan]:
    """Yield the longest spans of the test documents that `index` holds, each text once.

    Of spans that overlap in a document the longest is taken.
    """
    found: dict[tuple[str, ...], list[int]] = {}
    taken: list[tuple[int, int, int]] = []
    for length, document, end in _list_maximal(matches):
        is_full = len(found) == MAX_SHOWN_SPANS
        if is_full and length < min(map(len, found)):
            break
        begin = end - length
        if any(document == d and begin < e and b < end for d, b, e in taken):
            continue
        words = tuple(split_units(test[document], index.unit)[begin:end])
        if words in found or not is_full:
            found.setdefault(words, []).append(document)
            taken.append((document, begin, end))
    joint = " " if index.unit == "words" else ""
    for words, documents in found.items():
        places = index.find_documents(words)
        yield SharedSpan(
            length=len(words),
            text=joint.join(words),
            test_document=documents[0] + 1,
            test_documents=len(set(documents)),
            train_document=places[0] + 1,
            train_documents=len(places),
        )


def _list_maximal(matches: Sequence[NDArray[numpy.int64]]) -> list[tuple[int, int, int]]:
    """List the spans that no longer one holds, the longest first: length, document, end."""
    rows = []
    for document, longest in enumerate(matches):
        following = numpy.append(longest[1:], 0)
        ends = numpy.flatnonzero((longest > 0) & (following <= longest))
        rows += [(-int(longest[end]), document, int(end) + 1) for end in ends]
    return [(-length, document, end) for length, document, end in sorted(rows)]
