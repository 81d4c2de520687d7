"""The mark of the source itself: the bits per byte of a text by its true probability."""

from collections.abc import Iterable

from rung.data.toy_language import ToyLanguage
from rung.errors import CorpusError


def source_mark(texts: Iterable[str]) -> float | None:
    """Return the bits per byte, each document's end included, of documents of toy-language.

    No model can be expected to need fewer. Returns None where a document is of another source.
    """
    language, bits, size = ToyLanguage(), 0.0, 0
    try:
        for text in texts:
            bits += language.code_length(text)
            size += len(text.encode())
    except CorpusError:
        return None
    return bits / size if size else None
