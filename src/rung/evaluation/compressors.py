"""The ruler's marks: the bits per byte of general compressors on the same text."""

import bz2
import itertools
import lzma
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any

from rung.progress import OnProgress, Progress, ignore_progress

PRIMING_BYTES = 2**25  # of the training text that lzma reads before the test text
LZMA_CHUNK_BYTES = 2**18  # after each chunk the time of the rest is estimated
TIMED_SHARE = 0.1  # of the allowed seconds must pass before the estimate is believed
READ_BYTES = 2**22  # of documents at a time; one by one, a table's rows take 400 times as long


def compressor_marks(test: Sequence[str]) -> dict[str, float]:
    """Return the bits per byte of zlib, bz2 and lzma on the test text."""
    size = sum(len(text.encode()) for text in test)
    compressors = {
        "zlib": zlib.compressobj(9),
        "bz2": bz2.BZ2Compressor(9),
        "lzma": _begin_lzma(size),
    }
    return {
        name: 8 * _squeeze(compressor, (text.encode() for text in test)) / size
        for name, compressor in compressors.items()
    }


def lzma_after_train(
    test: Sequence[str],
    train: Sequence[str],
    seconds: float = math.inf,
    on_progress: OnProgress = ignore_progress,
) -> tuple[float | None, float]:
    """Return the bits per byte of lzma on the test text after the training text, and its seconds.

    lzma reads at most the last `PRIMING_BYTES` of the training text; its memory is eleven times
    that, for both texts. Where it would take longer than `seconds`, the mark is None and the second
    figure is the estimate. Progress counts the bytes that are read.
    """
    size = sum(len(text.encode()) for text in test)
    before = _end_of(train, PRIMING_BYTES)
    began, done, total = perf_counter(), 0, 2 * len(before) + size

    def watch(texts: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal done
        for text in texts:
            for at in range(0, len(text), LZMA_CHUNK_BYTES):
                piece = text[at : at + LZMA_CHUNK_BYTES]
                yield piece
                done += len(piece)
                on_progress(Progress("comparing", done, total))
                spent = perf_counter() - began
                if spent > TIMED_SHARE * seconds and (takes := spent * total / done) > seconds:
                    raise _TooLongError(takes)

    window = len(before) + size
    try:
        alone = _squeeze(_begin_lzma(window), watch([before]))
        both = _squeeze(
            _begin_lzma(window), watch(itertools.chain([before], (text.encode() for text in test)))
        )
    except _TooLongError as found:
        return None, found.seconds
    return 8 * (both - alone) / size, perf_counter() - began


class _TooLongError(Exception):
    """The estimate of lzma's seconds is over the limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def _begin_lzma(window: int) -> lzma.LZMACompressor:
    size = max(4096, min(window, 2 * PRIMING_BYTES))
    return lzma.LZMACompressor(
        lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": size}]
    )


def _squeeze(compressor: Any, texts: Iterable[bytes]) -> int:
    return sum(len(compressor.compress(text)) for text in texts) + len(compressor.flush())


def _end_of(texts: Sequence[str], limit: int) -> bytes:
    """Return the last documents, as few as hold `limit` bytes."""
    kept: list[bytes] = []
    size, end, rows = 0, len(texts), 1
    while size < limit and end:
        batch = [text.encode() for text in texts[max(0, end - rows) : end]]
        end -= len(batch)
        for text in reversed(batch):
            if size >= limit:
                break
            kept.append(text)
            size += len(text)
        # As many as hold READ_BYTES where they are as long as those so far.
        rows = max(1, READ_BYTES * len(kept) // max(size, READ_BYTES // 1024))
    return b"".join(reversed(kept))
