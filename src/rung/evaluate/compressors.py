"""The ruler's marks: what general compressors need for the same text."""

import bz2
import itertools
import lzma
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

PRIMED_BYTES = 2**25  # of the train text that lzma reads before the test text


def compressor_marks(test: Sequence[str], train: Sequence[str]) -> dict[str, float]:
    """Bits per byte of zlib, bz2 and lzma on the test text, and of lzma that has read the train text first.

    Of the train text it reads the end, `PRIMED_BYTES` at the most: its memory is eleven times that, of both texts.
    """
    size = sum(len(text.encode()) for text in test)
    before = _end_of(train, PRIMED_BYTES)
    window = max(4096, min(len(before) + size, 2 * PRIMED_BYTES))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]

    def squeeze(compressor: Any, texts: Iterable[bytes]) -> int:
        return sum(len(compressor.compress(text)) for text in texts) + len(compressor.flush())

    def squeeze_with_lzma(*first: bytes) -> int:
        compressor = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
        return squeeze(compressor, itertools.chain(first, (text.encode() for text in test)))

    primed = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    sizes = {
        "zlib": squeeze(zlib.compressobj(9), (text.encode() for text in test)),
        "bz2": squeeze(bz2.BZ2Compressor(9), (text.encode() for text in test)),
        "lzma": squeeze_with_lzma(),
        "lzma after train": squeeze_with_lzma(before) - squeeze(primed, [before]),
    }
    return {name: 8 * squeezed / size for name, squeezed in sizes.items()}


def _end_of(texts: Sequence[str], limit: int) -> bytes:
    kept: list[bytes] = []
    size = 0
    for i in reversed(range(len(texts))):
        if size >= limit:
            break
        kept.append(texts[i].encode())
        size += len(kept[-1])
    return b"".join(reversed(kept))
