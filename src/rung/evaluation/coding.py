"""Code documents under a model, in as many bits as the ruler charges, and decode them again.

A token's id is coded as a few digits, the most significant first: the tokens that share the digits
so far are a range of ids, and the sums of the model's numbers over its parts (`Predictor.cumulate`)
are the probabilities of the next digit. So no token is looked at but those near the one that is
coded, and a vocabulary of any size is coded exactly. The entropy coder is the range coder of
`constriction` (Bamler 2022). Documents are coded side by side, a token of each in turn, into one
stream of bits: what begins next is known from the ends of those before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from rung.errors import RecipeError, RunError
from rung.evaluation.documents import NO_BOS
from rung.evaluation.quantized_probabilities import Predictor
from rung.models.exact_probabilities import Integers
from rung.progress import OnProgress, ProgressMeter, ignore_progress

DIGIT_BITS = 4  # at most: the alphabet of a digit has up to 16 symbols
SPELLED = 257  # the symbols that spell a piece: 256 bytes, and its end
# How unlikely it is that a document has other pieces than one for each unknown token.
SURPRISE = 2.0**-12
COUNT_BITS = 32


@dataclass
class CodedDocument:
    """Token ids from BOS to EOS, and the bytes of the pieces that are spelled beside them."""

    ids: list[int]
    pieces: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class DocumentTokens:
    """The tokens that open and end a document, and that of unknown words, if there is one.

    `bos` is `NO_BOS` where no token opens it, `eos` None where none ends it.
    """

    bos: int
    eos: int | None
    unknown: int | None


class SymbolCoder(Protocol):
    """An encoder takes the wanted symbols; a decoder takes None; both return the symbols."""

    def code(self, probabilities: NDArray[numpy.float64], wanted: Integers | None) -> Integers:
        """Code a symbol of each row of probabilities (N, symbols)."""

    def code_uniform(self, size: int, wanted: int | None) -> int:
        """Code a symbol of `size` equally likely ones."""


class SymbolEncoder:
    """Writes symbols."""

    def __init__(self) -> None:
        self.stream, self.models = _import_constriction()
        self.coder = self.stream.RangeEncoder()

    def code(self, probabilities: NDArray[numpy.float64], wanted: Integers | None) -> Integers:
        """Code the wanted symbol of each row of probabilities (N, symbols)."""
        assert wanted is not None
        self.coder.encode(wanted.astype(numpy.int32), self.models.categorical, probabilities)
        return wanted

    def code_uniform(self, size: int, wanted: int | None) -> int:
        """Code the wanted one of `size` equally likely symbols."""
        assert wanted is not None
        self.coder.encode(wanted, self.models.uniform(size))
        return wanted

    def finish(self) -> bytes:
        """Return all that was coded."""
        return self.coder.get_compressed().astype("<u4").tobytes()


class SymbolDecoder:
    """Reads what a `SymbolEncoder` wrote."""

    def __init__(self, coded: bytes) -> None:
        self.stream, self.models = _import_constriction()
        words = numpy.frombuffer(coded, dtype="<u4").astype(numpy.uint32)
        self.coder = self.stream.RangeDecoder(words)

    def code(self, probabilities: NDArray[numpy.float64], wanted: Integers | None) -> Integers:
        """Return the symbol of each row of probabilities (N, symbols)."""
        return self.coder.decode(self.models.categorical, probabilities).astype(numpy.int64)

    def code_uniform(self, size: int, wanted: int | None) -> int:
        """Return one of `size` equally likely symbols."""
        return int(self.coder.decode(self.models.uniform(size)))


@dataclass(frozen=True)
class DocumentCoder:
    """Codes documents under a predictor, `streams` of them side by side."""

    predictor: Predictor
    tokens: DocumentTokens
    streams: int
    on_progress: OnProgress = ignore_progress

    def encode(self, documents: Sequence[CodedDocument]) -> bytes:
        """Return the code of the documents."""
        coder = SymbolEncoder()
        total = sum(len(document.ids) - 1 for document in documents)
        self._code(coder, len(documents), total, documents)
        return coder.finish()

    def decode(self, coded: bytes, count: int, total: int) -> list[CodedDocument]:
        """Return the documents; `total` is how many tokens they have after BOS.

        Raises `RunError` where the code is of something else.
        """
        return self._code(SymbolDecoder(coded), count, total, None)

    def _code(
        self,
        coder: SymbolCoder,
        count: int,
        total: int,
        given: Sequence[CodedDocument] | None,
    ) -> list[CodedDocument]:
        found: list[CodedDocument] = []
        meter = ProgressMeter(self.on_progress, "encoding" if given else "decoding", count)
        free, begun, coded = list(range(min(self.streams, count)))[::-1], 0, 0
        active: dict[int, _ActiveText] = {}
        while begun < count or active:
            while free and begun < count:
                wanted = None if given is None else given[begun]
                slot = free.pop()
                self.predictor.reset(slot)
                found.append(CodedDocument([self.tokens.bos]))
                length = self._open(coder, wanted)
                active[slot] = _ActiveText(found[begun], wanted, length, length == 1)
                begun += 1
            going = {slot: text for slot, text in active.items() if not text.is_ended}
            if (coded := coded + len(going)) > total:
                raise RunError("the code goes on beyond its end")
            self._step(coder, going)
            for slot in [slot for slot, text in active.items() if text.is_ended]:
                text = active.pop(slot)
                free.append(slot)
                self._spell(coder, text)
                meter.step(len(text.found.ids) - 1, items=1)
        return found

    def _open(self, coder: SymbolCoder, given: CodedDocument | None) -> int | None:
        """Code how many ids a document has, where no token ends it."""
        if self.tokens.eos is not None:
            return None
        length = None if given is None else len(given.ids)
        bits = coder.code_uniform(COUNT_BITS, None if length is None else length.bit_length())
        return _code_count(coder, length, bits)

    def _step(self, coder: SymbolCoder, going: dict[int, "_ActiveText"]) -> None:
        """Code the next token of each text; one that follows nothing is any token."""
        asked = {slot: text for slot, text in going.items() if text.found.ids[-1] != NO_BOS}
        for text in going.values():
            if text.found.ids[-1] == NO_BOS:
                size = max(2, self.predictor.vocab_size)
                text.append(coder.code_uniform(size, text.next_id()), self.tokens.eos)
        if not asked:
            return
        slots = numpy.fromiter(asked, dtype=numpy.int64)
        texts = list(asked.values())
        self.predictor.append(slots, numpy.array([text.found.ids[-1] for text in texts]))
        wanted = None
        if texts[0].given is not None:
            wanted = numpy.array([text.next_id() for text in texts])
        tokens = code_tokens(self.predictor, slots, coder, wanted).tolist()
        for text, token in zip(texts, tokens, strict=True):
            text.append(token, self.tokens.eos)

    def _spell(self, coder: SymbolCoder, text: "_ActiveText") -> None:
        """Code the pieces that are spelled beside a document's tokens, as the ruler charges them.

        There is one for each unknown token, else their number is coded too.
        """
        found, given = text.found, text.given
        count = found.ids.count(self.tokens.unknown) if self.tokens.unknown is not None else 0
        wanted = None if given is None else numpy.array([int(len(given.pieces) != count)])
        if coder.code(numpy.array([[1 - SURPRISE, SURPRISE]]), wanted)[0]:
            count = _code_count(coder, None if given is None else len(given.pieces), COUNT_BITS)
        for place in range(count):
            piece = None if given is None else given.pieces[place]
            found.pieces.append(_spell_piece(coder, piece))


@dataclass
class _ActiveText:
    """A document that is coded; `length` of ids where no token ends it."""

    found: CodedDocument
    given: CodedDocument | None
    length: int | None
    is_ended: bool

    def append(self, token: int, eos: int | None) -> None:
        """Append a token, which may be the last one."""
        self.found.ids.append(token)
        self.is_ended = token == eos if self.length is None else len(self.found.ids) == self.length

    def next_id(self) -> int | None:
        """Return the id that is to be coded next; None where it is to be decoded."""
        return None if self.given is None else self.given.ids[len(self.found.ids)]


def _code_count(coder: SymbolCoder, count: int | None, bits: int) -> int:
    """Code a whole number of at most so many bits, half of them at a time."""
    found = 0
    while bits > 0:
        some = min(bits, COUNT_BITS // 2)
        bits -= some
        wanted = None if count is None else (count >> bits) & ((1 << some) - 1)
        found = found << some | coder.code_uniform(1 << some, wanted)
    return found


def _spell_piece(coder: SymbolCoder, piece: bytes | None) -> bytes:
    """Code a piece's bytes and its end; without a piece, until the end is read."""
    found = bytearray()
    symbols = None if piece is None else [*piece, SPELLED - 1]
    while True:
        symbol = coder.code_uniform(SPELLED, None if symbols is None else symbols[len(found)])
        if symbol == SPELLED - 1:
            return bytes(found)
        found.append(symbol)


def code_tokens(
    predictor: Predictor, slots: Integers, coder: SymbolCoder, wanted: Integers | None
) -> Integers:
    """Code the next token of each slot, digit by digit, and return the tokens.

    Raises `RunError` where what is decoded is no token.
    """
    low = numpy.zeros(len(slots), dtype=numpy.int64)
    rows = numpy.arange(len(slots))
    left = max(1, (predictor.vocab_size - 1).bit_length())
    while left:
        digits = -(-left // DIGIT_BITS)  # the bits are shared out evenly
        bits = -(-left // digits)
        left -= bits
        places = low[:, None] + (numpy.arange(2**bits + 1) << left)
        sums = predictor.cumulate(slots, places)
        ranges = sums[:, -1:] - sums[:, :1]
        if not ranges.all():
            raise RunError("the code is of tokens that the model does not have")
        found = coder.code(
            (sums[:, 1:] - sums[:, :-1]) / ranges,
            None if wanted is None else (wanted - low) >> left,
        )
        low = places[rows, found]
    return low


@dataclass(frozen=True)
class _Models:
    categorical: Any
    uniform: Any


def _import_constriction() -> tuple[Any, _Models]:
    """Import the entropy coder. Raises `RecipeError` where it is not installed."""
    try:
        import constriction
    except ImportError:
        raise RecipeError(
            "coding needs constriction, which is not installed: pip install 'rung[compress]'"
        ) from None
    models = constriction.stream.model
    return constriction.stream.queue, _Models(models.Categorical(perfect=False), models.Uniform)
