"""What the tokens of a text do not say of its bytes, written down so that all come back.

Bytes that are not UTF-8 are taken out, documents that are blank or that a tokenizer cannot encode
are kept as they are. Of a tokenizer that loses white space, case or characters, each token's piece
of the text (the text from the end of the token before it) is compared with what is expected of the
token: what it stood for the last time, after a space. What differs is listed. All of it is
compressed by zlib: it is what the ruler does not charge, and little for a lossless tokenizer.
"""

import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from rung.data.files import COARSE_CHUNKING, cut_text, join_paragraphs
from rung.data.tokenizer import ENCODE_BATCH_SIZE
from rung.errors import TokenizerError
from rung.evaluation.alignment import Aligner, Alignment
from rung.evaluation.coding import CodedDocument
from rung.evaluation.documents import add_document_ends

NOT_UTF8 = re.compile("[\udc80-\udcff]+")  # bytes as Python's `surrogateescape` reads them

# How many tokens after the last entry, and the white space and the characters of the piece.
Entry = tuple[int, str, str]


@dataclass
class Remainder:
    """What is left: bytes that are no UTF-8, documents that are not coded, pieces of others.

    `escaped` has for each run of bytes how many characters after the last one it stands, and the
    bytes as Latin-1. `kept` are documents by their place, `pieces` the entries of others.
    """

    escaped: list[tuple[int, str]] = field(default_factory=list)
    kept: list[tuple[int, str]] = field(default_factory=list)
    pieces: list[tuple[int, list[Entry]]] = field(default_factory=list)

    def pack(self) -> bytes:
        """Return it as bytes; none where nothing is left."""
        parts = [self.escaped, self.kept, self.pieces]
        if not any(parts):
            return b""
        return zlib.compress(json.dumps(parts, separators=(",", ":")).encode(), 9)

    @classmethod
    def unpack(cls, packed: bytes) -> "Remainder":
        """Return what `pack` packed."""
        return cls(*json.loads(zlib.decompress(packed))) if packed else cls()


def encode_text(
    data: bytes, kind: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[CodedDocument], Remainder, int]:
    """Return the documents to code, what is left beside them, and the number of all documents.

    `kind` is what a document is: lines, paragraphs or file.
    """
    remainder = Remainder()
    text = _take_out_bytes(data.decode("utf-8", "surrogateescape"), remainder)
    texts = cut_documents(text, kind)
    expected = _ExpectedPieces(tokenizer)
    documents = []
    for place, (document, aligned) in enumerate(_align(texts, tokenizer)):
        if aligned is None:
            remainder.kept.append((place, document))
            continue
        ids = aligned.encoding.ids
        unknown = [document[slice(*span)] for span in aligned.unknown]
        if (
            unknown
            or tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) != document
        ):
            pieces = _list_pieces(document, aligned)
            remainder.pieces.append((place, expected.compare(ids, unknown, pieces)))
        documents.append(
            CodedDocument(
                add_document_ends(ids, tokenizer),
                [word.encode() for word in unknown],
            )
        )
    return documents, remainder, len(texts)


def decode_text(
    documents: Sequence[CodedDocument],
    remainder: Remainder,
    kind: str,
    count: int,
    tokenizer: PreTrainedTokenizerBase,
) -> bytes:
    """Return the bytes that `encode_text` was given."""
    kept, pieces = dict(remainder.kept), dict(remainder.pieces)
    coded, expected = iter(documents), _ExpectedPieces(tokenizer)
    texts = []
    for place in range(count):
        if place in kept:
            texts.append(kept[place])
            continue
        document = next(coded)
        ids = document.ids[1:] if tokenizer.eos_token_id is None else document.ids[1:-1]
        if place in pieces:
            words = [piece.decode() for piece in document.pieces]
            texts.append(expected.restore(ids, words, pieces[place]))
        else:
            texts.append(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))
    text = ("\n" if kind == "lines" else "").join(texts)
    return _put_back_bytes(text, remainder)


def cut_documents(text: str, kind: str) -> list[str]:
    """Cut a text into documents as the ruler reads them, and lose nothing.

    Lines join by line feeds, other documents by nothing.
    """
    if kind != "paragraphs":
        return text.split("\n") if kind == "lines" else [text] if text else []
    lines = (
        piece
        for line in io.StringIO(text, newline="")
        for piece in (
            [line]
            if len(line) <= COARSE_CHUNKING.max_line
            else cut_text(line, COARSE_CHUNKING.min_length // 4, COARSE_CHUNKING.max_paragraph // 4)
        )
    )
    documents = list(join_paragraphs(lines, COARSE_CHUNKING))
    tail = text[sum(map(len, documents)) :]  # blank lines
    return [*documents, tail] if tail else documents


def _take_out_bytes(text: str, remainder: Remainder) -> str:
    at = 0
    parts = []
    for found in NOT_UTF8.finditer(text):
        escaped = found[0].encode("utf-8", "surrogateescape").decode("latin-1")
        remainder.escaped.append((found.start() - at, escaped))
        parts.append(text[at : found.start()])
        at = found.end()
    return "".join([*parts, text[at:]])


def _put_back_bytes(text: str, remainder: Remainder) -> bytes:
    at = 0
    parts = []
    for distance, escaped in remainder.escaped:
        parts += [text[at : at + distance].encode(), escaped.encode("latin-1")]
        at += distance
    return b"".join([*parts, text[at:].encode()])


def _align(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, Alignment | None]]:
    """Yield each document with its alignment; None where it is blank or cannot be encoded."""
    aligner = Aligner(tokenizer)
    for start in range(0, len(texts), ENCODE_BATCH_SIZE):
        batch = texts[start : start + ENCODE_BATCH_SIZE]
        filled = [text for text in batch if text.strip()]
        try:
            aligned: Iterator[Alignment | None] = iter([each for _, each in aligner.align(filled)])
        except TokenizerError:
            aligned = iter([_align_alone(aligner, text) for text in filled])
        for text in batch:
            yield text, next(aligned) if text.strip() else None


def _align_alone(aligner: Aligner, text: str) -> Alignment | None:
    try:
        return next(aligner.align([text]))[1]
    except TokenizerError:
        return None


def _list_pieces(text: str, aligned: Alignment) -> list[tuple[str, str]]:
    """Return the white space before each token and its characters; last what follows all tokens.

    Of tokens that share characters the first has them.
    """
    pieces = []
    at = 0
    for start, stop in aligned.encoding.offsets:
        start, stop = max(start, at), max(stop, at)
        pieces.append((text[at:start], text[start:stop]))
        at = stop
    return [*pieces, ("", text[at:])]


class _ExpectedPieces:
    """What is expected of each token: what it stood for the last time, after a space or not."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.unknown = Aligner(tokenizer).unknown
        self.last: dict[int, tuple[str, str]] = {}

    def compare(
        self, ids: Sequence[int], words: Sequence[str], pieces: Sequence[tuple[str, str]]
    ) -> list[Entry]:
        """List the pieces that are not as expected."""
        entries: list[Entry] = []
        last = -1
        for place, (expected, piece) in enumerate(
            zip(self._expect(ids, words, pieces), pieces, strict=True)
        ):
            if expected != piece:
                entries.append((place - last, *piece))
                last = place
        return entries

    def restore(
        self, ids: Sequence[int], words: Sequence[str], entries: Sequence[Sequence[Any]]
    ) -> str:
        """Return the text of which `compare` listed these entries."""
        pieces: list[tuple[str, str]] = []
        listed: dict[int, tuple[str, str]] = {}
        place = -1
        for distance, gap, said in entries:
            place += distance
            listed[place] = (gap, said)
        for place, expected in enumerate(self._expect(ids, words, pieces)):
            pieces.append(listed.get(place, expected))
        return "".join(gap + said for gap, said in pieces)

    def _expect(
        self, ids: Sequence[int], words: Sequence[str], pieces: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[str, str]]:
        """Yield what is expected of each token and of the end; `pieces` may grow meanwhile."""
        spelled = iter(words)
        for place, id in enumerate(ids):
            gap, said = self.last.get(id) or (" ", self.tokenizer.backend_tokenizer.decode([id]))
            if id == self.unknown:
                said = next(spelled, "")
            yield (gap if place else "", said)
            found = pieces[place]
            if found[0] in ("", " ") and place:
                gap = found[0]
            self.last[id] = (gap, found[1])
        yield ("", "")
