"""Cut texts into words, so that what a tokenizer does is done once for each distinct word.

A word is the white space before it and all that follows up to the next white space. Most words of a
text are repeated many times. Where the parts of a tokenizer that come before its model look at
nothing beyond such a word (`splits_at_white_space`), the ids of a text are those of its words.
"""

import ctypes
import itertools
import json
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from ctypes import POINTER, Structure, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pyarrow
from numpy.typing import NDArray

from rung.compiler import compile_source
from rung.errors import TokenizerError

WORDS_SOURCE = Path(__file__).with_name("words.c")
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
    joined, ends = _join(texts)
    data = numpy.frombuffer(joined, dtype=numpy.uint8)
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


def _join(texts: list[str]) -> tuple[bytes, NDArray[numpy.int64]]:
    """Join the texts in UTF-8; returns where each begins, and the end."""
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text is not Unicode, and cannot be encoded: {error}") from error
    return b"".join(encoded), numpy.cumsum([0, *map(len, encoded)])


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


class ArrowWords:
    """Distinct words, numbered in the order in which they are first met, by Arrow and a dict."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(
        self, texts: list[str], *, at_white_space: bool = True
    ) -> tuple[NDArray[numpy.int32], NDArray[numpy.int64], list[str]]:
        """Number the words of the texts.

        Returns the number of each word, which word each text begins with and how many there are,
        and the distinct words that are new.
        """
        words, first = split_words(texts, at_white_space=at_white_space)
        coded = words.dictionary_encode()
        distinct = coded.dictionary.to_pylist()
        new = [word for word in distinct if word not in self.numbers]
        self.numbers.update((word, n) for n, word in enumerate(new, start=len(self.numbers)))
        number = numpy.fromiter(map(self.numbers.__getitem__, distinct), dtype=numpy.int32)
        indices = numpy.frombuffer(coded.indices.buffers()[1], dtype=numpy.int32)
        return number[indices[: len(words)]], first, new


def _list_ids(
    numbers: NDArray[numpy.int32],
    first: NDArray[numpy.int64],
    ids: NDArray[numpy.uint32],
    ends: NDArray[numpy.int64],
) -> tuple[NDArray[numpy.uint32], NDArray[numpy.int64]]:
    """Return the ids of all words in one row, and the number of ids of each text.

    `ids` are those of the distinct words, each word's up to its end in `ends`, after a zero.
    """
    if library := _compile():
        lengths = numpy.empty(len(first) - 1, dtype=numpy.int64)
        known = [part.ctypes.data for part in (first, numbers, ends, ids)]
        library.list_ids(len(lengths), *known, None, lengths.ctypes.data)
        row = numpy.empty(lengths.sum(), dtype=numpy.uint32)
        library.list_ids(len(lengths), *known, row.ctypes.data, lengths.ctypes.data)
        return row, lengths
    begin, count = ends[numbers], ends[numbers + 1] - ends[numbers]
    before = numpy.append(0, numpy.cumsum(count))  # ids before each word
    places = numpy.repeat(begin - before[:-1], count)
    places += numpy.arange(len(places))
    return ids[places], numpy.diff(before[first])


class _Table(Structure):
    """The fields of a table in `words.c` that are read here."""

    _fields_ = [
        *((name, c_int64) for name in ("count", "room", "bytes_room", "slots")),
        *(("bytes", c_void_p), ("ends", POINTER(c_int64))),
    ]


class CompiledWords:
    """Distinct words, numbered as `ArrowWords` does, by `words.c`."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self.compiled = compiled
        self.table = compiled.make_table()
        if not self.table:
            raise MemoryError("no memory for a table of words")
        weakref.finalize(self, compiled.free_table, self.table)

    def number(
        self, texts: list[str], *, at_white_space: bool = True
    ) -> tuple[NDArray[numpy.int32], NDArray[numpy.int64], list[str]]:
        """Do as `ArrowWords.number` does."""
        joined, ends = _join(texts)
        table = _Table.from_address(self.table)
        known, first = table.count, numpy.empty_like(ends)
        # A word has two bytes at least, but for the first of a text.
        numbers = numpy.empty(len(joined) // 2 + len(texts), dtype=numpy.int32)
        done = self.compiled.number_words(
            *(self.table, joined, len(texts), ends[1:].ctypes.data, at_white_space),
            *(len(_WIDE_SPACE_CODES), _WIDE_SPACE_CODES.ctypes.data),
            *(numbers.ctypes.data, first.ctypes.data),
        )
        if not done:
            raise MemoryError("no memory for a table of words")
        bounds = table.ends[known : table.count + 1]
        begin = bounds[0]
        new = ctypes.string_at(table.bytes + begin, bounds[-1] - begin)
        pairs = itertools.pairwise(bounds)
        return numbers[: first[-1]], first, [new[a - begin : b - begin].decode() for a, b in pairs]


@cache
def _compile() -> ctypes.CDLL | None:
    library = compile_source(WORDS_SOURCE)
    if library is not None:
        library.make_table.restype, library.free_table.argtypes = c_void_p, [c_void_p]
        library.number_words.argtypes = [c_void_p, ctypes.c_char_p, c_int64, c_void_p, c_int]
        library.number_words.argtypes += [c_int, *[c_void_p] * 3]
        library.list_ids.argtypes = [c_int64, *[c_void_p] * 6]
        library.list_ids.restype = None
    return library


def _make_table() -> ArrowWords | CompiledWords:
    library = _compile()
    return ArrowWords() if library is None else CompiledWords(library)


def count_words(texts: Iterable[str]) -> tuple[list[str], NDArray[numpy.int64]]:
    """Return the distinct words of the texts, and how often each occurs."""
    table, words, counts = _make_table(), list[str](), numpy.zeros(0, dtype=numpy.int64)
    for batch in batch_texts(texts, COUNTED_AT_ONCE):
        numbers, _, new = table.number(batch)
        words += new
        found = numpy.bincount(numbers, minlength=len(words))
        found[: len(counts)] += counts
        counts = found
    return words, counts


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
        self.table = _make_table()
        self.size = 0
        self.ids = numpy.empty(0, dtype=numpy.uint32)
        self.ends = numpy.zeros(1, dtype=numpy.int64)  # of each word's ids, after a zero

    def encode_texts(
        self, texts: list[str], *, at_white_space: bool
    ) -> tuple[NDArray[numpy.uint32], NDArray[numpy.int64]]:
        """Encode to the ids of all texts in one row, and the number of ids of each text."""
        with self.lock:
            if self.size > KEPT_BYTES:
                self._clear()
            numbers, first, new = self.table.number(texts, at_white_space=at_white_space)
            if new:
                self._add(new)
            ids, ends = self.ids, self.ends
        return _list_ids(numbers, first, ids, ends)

    def _add(self, words: list[str]) -> None:
        """Add the ids of words that are new in the table."""
        try:
            found = self.encode(words)
        except BaseException:
            self._clear()  # the table has words without ids
            raise
        lengths = numpy.fromiter(map(len, found), dtype=numpy.int64, count=len(found))
        row = (id for ids in found for id in ids)
        new = numpy.fromiter(row, dtype=numpy.uint32, count=lengths.sum())
        self.ends = numpy.append(self.ends, self.ends[-1] + numpy.cumsum(lengths))
        self.ids = numpy.append(self.ids, new)
        self.size += sum(map(len, words)) + WORD_BYTES * len(words)
