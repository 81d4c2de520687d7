"""The ruler's marks: what general compressors need for the same text."""

import bz2
import itertools
import lzma
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

PRIMING_BYTES = 2**25  # of the train text that lzma reads before the test text
LZMA_CHUNK_BYTES = (
    2**18
)  # that lzma is given at a time: after each, it is seen how long the rest will take
TIMED_SHARE = 0.1  # of the seconds that lzma may take go by before that is believed
READ_BYTES = (
    2**22
)  # of documents at a time, roughly: one by one, a table's rows take 400 times as long

now = time.perf_counter


def compressor_marks(test: Sequence[str]) -> dict[str, float]:
    """Bits per byte of zlib, bz2 and lzma on the test text."""
    size = sum(len(text.encode()) for text in test)
    compressors = {
        "zlib": zlib.compressobj(9),
        "bz2": bz2.BZ2Compressor(9),
        "lzma": _begin_lzma(size),
    }
    return {
        name: 8 * _squeeze(each, (text.encode() for text in test)) / size
        for name, each in compressors.items()
    }


def lzma_after_train(
    test: Sequence[str],
    train: Sequence[str],
    seconds: float = math.inf,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float | None, float]:
    """Bits per byte of lzma on the test text where it has read the train text first, and the
    seconds that it took.

    Of the train text it reads the end, `PRIMING_BYTES` at the most: its memory is eleven times
    that, of both texts. Where it would take longer than `seconds` there is no mark, and the second
    figure is what it would have taken. `tell` hears how many bytes of how many are read.
    """
    size = sum(len(text.encode()) for text in test)
    before = _end_of(train, PRIMING_BYTES)
    began, done, total = now(), 0, 2 * len(before) + size

    def watch(texts: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal done
        for text in texts:
            for at in range(0, len(text), LZMA_CHUNK_BYTES):
                piece = text[at : at + LZMA_CHUNK_BYTES]
                yield piece
                done += len(piece)
                tell(done, total)
                spent = now() - began
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
    return 8 * (both - alone) / size, now() - began


class _TooLongError(Exception):
    """Lzma would take so many seconds."""

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
    """The last `limit` bytes of the documents, and what else is in the first of them."""
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
        rows = max(
            1, READ_BYTES * len(kept) // max(size, READ_BYTES // 1024)
        )  # as long as those so far
    return b"".join(reversed(kept))
