"""Cut texts into words, so that what a tokenizer does is done once for each distinct word.

A word is the white space before it and all that follows up to the next white space. Most words of a
text are repeated many times. Where the parts of a tokenizer that come before its model look at
nothing beyond such a word (`splits_at_white_space`), the ids of a text are those of its words.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy
import pyarrow
from numpy.typing import NDArray

from rung.errors import TokenizerError

COUNTED_AT_ONCE = 1 << 22  # characters
KEPT_BYTES = 1 << 24  # of distinct words with their ids, about
WORD_BYTES = 100  # beside the characters of a word
# Every character that some standard calls white space, and those without width beside them. Text is
# not cut behind one that is not ASCII: the white space after it belongs to it.
WIDE_SPACES = "\x85\xa0\u1680\u180e" + "".join(map(chr, range(0x2000, 0x2010)))
WIDE_SPACES += "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
_IS_SPACE = numpy.zeros(256, dtype=bool)
_IS_SPACE[[9, 10, 11, 12, 13, 32]] = True
# The last three bytes of such a character, or its two, as one number.
_WIDE_SPACE_CODES = numpy.sort([int.from_bytes(c.encode(), "big") for c in WIDE_SPACES])

# Gives the ids of each word.
EncodeWords = Callable[[list[str]], list[list[int]]]


def split_words(
    texts: list[str], *, at_white_space: bool = True
) -> tuple[pyarrow.LargeStringArray, NDArray[numpy.int64]]:
    """Cut the texts into words; `at_white_space=False` leaves each text that is not empty whole.

    Returns the words of all texts, and the number of the first word of each text, with the number
    of all words at the end. Raises `TokenizerError` for a text that is not Unicode.
    """
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text is not Unicode, and cannot be encoded: {error}") from error
    joined = b"".join(encoded)
    data = numpy.frombuffer(joined, dtype=numpy.uint8)
    ends = numpy.cumsum([0, *map(len, encoded)])
    cut = numpy.zeros(len(data) + 1, dtype=bool)
    if at_white_space and len(data):
        cut[_find_cuts(data)] = True
    cut[ends] = True
    starts = numpy.flatnonzero(cut)
    # `pyarrow.array` would import pandas, which takes half a second; so would `to_numpy` below.
    words = pyarrow.LargeStringArray.from_buffers(
        len(starts) - 1, pyarrow.py_buffer(starts), pyarrow.py_buffer(joined)
    )
    return words, numpy.searchsorted(starts, ends)


def _find_cuts(data: NDArray[numpy.uint8]) -> NDArray[numpy.int64]:
    """Find the ASCII white space in UTF-8 that follows a character which is no white space."""
    space = _IS_SPACE[data]
    before = numpy.flatnonzero(space[1:] & ~space[:-1])  # the byte before each
    last = data[before]
    is_cut = last > 0x20  # no control character
    wide = numpy.flatnonzero(last >= 0x80)
    if len(wide):
        at = before[wide]
        code = data[at - 1].astype(numpy.int64) << 8 | data[at]
        longer = data[numpy.maximum(at - 2, 0)].astype(numpy.int64) << 16 | code
        is_cut[wide] = ~(
            numpy.isin(code, _WIDE_SPACE_CODES) | numpy.isin(longer, _WIDE_SPACE_CODES)
        )
    return before[is_cut] + 1


def count_words(texts: Iterable[str]) -> tuple[list[str], NDArray[numpy.int64]]:
    """Return the distinct words of the texts, and how often each occurs."""
    counts: dict[str, int] = {}
    for batch in batch_texts(texts, COUNTED_AT_ONCE):
        words, _ = split_words(batch)
        found, times = words.value_counts().flatten()
        for word, number in zip(found.to_pylist(), times.to_pylist(), strict=True):
            counts[word] = counts.get(word, 0) + number
    return list(counts), numpy.fromiter(counts.values(), dtype=numpy.int64, count=len(counts))


def batch_texts(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield the texts in lists of at least `size` characters together, but for the last."""
    batch: list[str] = []
    read = 0
    for text in texts:
        batch.append(text)
        read += len(text) + 1
        if read >= size:
            yield batch
            batch, read = [], 0
    if batch:
        yield batch


def splits_at_white_space(spec: dict[str, Any], proven: Iterable[dict[str, Any]]) -> bool:
    """Whether a tokenizer's ids of a text are those of its words, by the tokenizer's JSON.

    They are where its normalizer and pre-tokenizer are those of a tokenizer in `proven`, and where
    no added token, in which there may be white space, is looked for in the text. Any model may
    follow: it sees one pre-token at a time.
    """
    if any(not token["special"] for token in spec["added_tokens"]):
        return False
    return _describe_splitting(spec) in map(_describe_splitting, proven)


def _describe_splitting(spec: dict[str, Any]) -> str:
    # `trim_offsets` changes no id.
    parts = json.loads(
        json.dumps([spec["normalizer"], spec["pre_tokenizer"]]),
        object_hook=lambda part: {k: v for k, v in part.items() if k != "trim_offsets"},
    )
    return json.dumps(parts, sort_keys=True)


class WordIds:
    """The ids of distinct words, encoded when they are first met; threads may share it.

    Where the words that are kept grow too many it begins anew.
    """

    def __init__(self, encode: EncodeWords) -> None:
        self.encode = encode
        self.lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self.numbers: dict[str, int] = {}
        self.size = 0
        self.ids = numpy.empty(0, dtype=numpy.uint32)
        self.ends = numpy.zeros(1, dtype=numpy.int64)  # of each word's ids, after a zero

    def encode_texts(
        self, texts: list[str], *, at_white_space: bool
    ) -> tuple[NDArray[numpy.uint32], NDArray[numpy.int64]]:
        """Encode to the ids of all texts in one row, and the number of ids of each text."""
        words, first = split_words(texts, at_white_space=at_white_space)
        coded = words.dictionary_encode()
        numbers, ids, ends = self._look_up(coded.dictionary.to_pylist())
        indices = numpy.frombuffer(coded.indices.buffers()[1], dtype=numpy.int32)
        numbers = numbers[indices[: len(words)]]
        begin, count = ends[numbers], ends[numbers + 1] - ends[numbers]
        before = numpy.append(0, numpy.cumsum(count))  # ids before each word
        places = numpy.repeat(begin - before[:-1], count)
        places += numpy.arange(len(places))
        return ids[places], numpy.diff(before[first])

    def _look_up(
        self, words: list[str]
    ) -> tuple[NDArray[numpy.int64], NDArray[numpy.uint32], NDArray[numpy.int64]]:
        """Return the number of each distinct word, the ids of all words, and their ends there."""
        with self.lock:
            if self.size > KEPT_BYTES:
                self._clear()
            unknown = [word for word in words if word not in self.numbers]
            if unknown:
                found = self.encode(unknown)
                lengths = numpy.fromiter(map(len, found), dtype=numpy.int64, count=len(found))
                row = (id for ids in found for id in ids)
                new = numpy.fromiter(row, dtype=numpy.uint32, count=lengths.sum())
                self.ends = numpy.append(self.ends, self.ends[-1] + numpy.cumsum(lengths))
                self.ids = numpy.append(self.ids, new)
                numbered = enumerate(unknown, start=len(self.numbers))
                self.numbers.update((word, number) for number, word in numbered)
                self.size += sum(map(len, unknown)) + WORD_BYTES * len(unknown)
            numbers = numpy.fromiter(
                map(self.numbers.__getitem__, words), dtype=numpy.int64, count=len(words)
            )
            return numbers, self.ids, self.ends
