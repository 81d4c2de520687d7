"""The marks of general compressors on a text."""

import bz2
import itertools
import lzma
import zlib

import numpy
import pytest

from rung.evaluation import compressors
from rung.evaluation.compressors import compressor_marks, lzma_after_train
from tests.evaluation.conftest import LONG


def test_compressors_mark_repetition():
    marks = compressor_marks(["abc " * 500])
    assert list(marks) == ["zlib", "bz2", "lzma"]
    assert all(0 < bits < 1 for bits in marks.values())
    after, _ = lzma_after_train([LONG], [LONG])
    assert after < compressor_marks([LONG])["lzma"] / 2


def test_lzma_reads_the_end_of_the_train_text_before_the_test_text(monkeypatch):
    monkeypatch.setattr("rung.evaluation.compressors.PRIMING_BYTES", 10_000)
    draw = numpy.random.default_rng(0)
    first, last = ("".join(map(chr, draw.integers(32, 127, 10_000))) for _ in range(2))
    at_the_end, _ = lzma_after_train([last], [first, last])
    at_the_beginning, _ = lzma_after_train([first], [first, last])
    assert at_the_end < 0.5
    assert at_the_beginning > 6
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 20_000}]
    sizes = [
        len(lzma.compress(text.encode(), lzma.FORMAT_RAW, filters=filters))
        for text in (last, last + first)
    ]
    assert at_the_beginning == pytest.approx(8 * (sizes[1] - sizes[0]) / len(first), rel=1e-3)


def test_the_marks_of_documents_are_those_of_their_text():
    documents = [f"{i} {LONG[i:]}" for i in range(0, 400, 7)]
    text = "".join(documents).encode()
    marks = compressor_marks(documents)
    squeezed = {"zlib": zlib.compress(text, 9), "bz2": bz2.compress(text, 9)}
    for name, found in squeezed.items():
        assert marks[name] == 8 * len(found) / len(text)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**20}]
    whole = lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters)
    assert marks["lzma"] == pytest.approx(8 * len(whole) / len(text), rel=1e-3)


class SlowRows(list):
    """Documents of which any number is read at one price, as of an Arrow column."""

    reads = 0

    def __getitem__(self, places):
        self.reads += 1
        return super().__getitem__(places)


def test_lzma_reads_documents_in_batches(monkeypatch):
    """Row by row, 300,000 lines of an Arrow column took 182 s instead of 0.4 s."""
    rows = SlowRows(f"line {number}" for number in range(30_000))
    text = "".join(rows).encode()
    assert compressors._end_of(rows, len(text) * 2) == text
    assert rows.reads < 20
    end = compressors._end_of(rows, 100)
    assert text.endswith(end) and 100 <= len(end) < 120 and end.startswith(b"line")
    monkeypatch.setattr(compressors, "READ_BYTES", 1000)
    wide = SlowRows("x" * 400 for number in range(40))
    assert compressors._end_of(wide, 10**6) == b"x" * 16_000
    assert 40 / 4 < wide.reads <= 40  # no more at a time than are wanted in memory


def test_lzma_looks_back_over_both_texts_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(
        compressors.lzma, "LZMACompressor", lambda _, filters: filters[0]["dict_size"]
    )
    assert [compressors._begin_lzma(size) for size in (10, 10_000, 2**40)] == [4096, 10_000, 2**26]


@pytest.mark.parametrize(
    ("limit", "end"),
    [(0, b""), (1, b"cc"), (2, b"cc"), (3, b"bbcc"), (5, b"aabbcc"), (9, b"aabbcc")],
)
def test_the_end_of_documents_is_of_whole_ones(limit, end):
    assert compressors._end_of(["aa", "bb", "cc"], limit) == end


def test_lzma_is_left_out_where_it_takes_too_long(monkeypatch):
    """By a clock of our own: a second for each thing that it is given."""
    seconds = iter(range(1000))
    monkeypatch.setattr(compressors, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(compressors, "LZMA_CHUNK_BYTES", 1000)
    heard, train = [], ["0123456789" * 5000]

    def hear(progress):
        heard.append((progress.done, progress.total))

    mark, takes = lzma_after_train(["abc"], train, 10.0, hear)
    assert mark is None and 90 < takes < 220
    assert 1 <= len(heard) < 5  # foreseen, not waited for
    mark, takes = lzma_after_train(["abc"], train, 300.0, hear)
    assert mark is not None and takes > 90
    assert heard[-1] == (100_003, 100_003)
    assert lzma_after_train(["abc"], train, 300.0)[1] == takes  # whatever the clock's hour was


def test_a_slow_start_is_no_proof_that_lzma_takes_too_long(monkeypatch):
    """Nine seconds for the first hundredth and none for the rest: a tenth of the hundred had not
    gone by.
    """
    monkeypatch.setattr(compressors, "LZMA_CHUNK_BYTES", 1000)
    for first, is_given in ((9, True), (11, False)):
        hours = itertools.chain([1000], itertools.repeat(1000 + first))
        monkeypatch.setattr(compressors, "perf_counter", lambda hours=hours: next(hours))
        mark, takes = lzma_after_train(["abc"], ["0123456789" * 5000], 100.0)
        assert (mark is not None) == is_given
        assert takes == pytest.approx(first if is_given else 11 * 100_003 / 1000)
