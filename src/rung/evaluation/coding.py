"""Code documents under a model, in as many bits as the ruler charges, and decode them again.

A token's id is coded as a few digits, the most significant first: the tokens that share the digits
so far are a range of ids, and the sums of the model's numbers over its parts (`Predictor.cumulate`)
are the probabilities of the next digit. So no token is looked at but those near the one that is
coded, and a vocabulary of any size is coded exactly. The entropy coder is the range coder of
`constriction` (Bamler 2022). Documents are coded side by side, a token of each in turn, into one
stream of bits: what begins next is known from the ends of those before.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
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
        coding = _Pass(self, coder, given)
        meter = ProgressMeter(self.on_progress, "encoding" if given else "decoding", count)
        free, begun = list(range(min(self.streams, count)))[::-1], 0
        while begun < count or coding.active.shape[1]:
            while free and begun < count:
                coding.begin(begun, free.pop())
                begun += 1
            going = coding.active.shape[1] - len(coding.find_ended())
            if (coding.coded + going) > total:
                raise RunError("the code goes on beyond its end")
            coding.step()
            for slot, length in coding.end():
                free.append(slot)
                meter.step(length, items=1)
        return coding.collect()


_DOCUMENT, _SLOT, _LAST, _LENGTH, _END, _UNKNOWN, _NEXT = range(7)  # the rows of `_Pass.active`


class _Pass:
    """One pass over documents, which encodes or decodes them.

    `active` has a column for each document that is coded now: its number, its slot, its last token,
    how many tokens it has after BOS, at how many it ends (-1 where a token ends it), how many of
    them are unknown, and where its next token stands in `ids`.
    """

    def __init__(
        self, how: DocumentCoder, coder: SymbolCoder, given: Sequence[CodedDocument] | None
    ) -> None:
        self.how, self.tokens, self.coder, self.given = how, how.tokens, coder, given
        self.active: Integers = numpy.empty((_NEXT + 1, 0), dtype=numpy.int64)
        self.coded = 0
        self.found: list[tuple[Integers, Integers]] = []  # documents, and a token of each
        self.pieces: list[list[bytes]] = []  # of each document
        self.ids: Integers | None = None  # of all documents, if they are given
        if given is not None:
            sizes = [len(document.ids) for document in given]
            every = itertools.chain.from_iterable(document.ids for document in given)
            self.ids = numpy.fromiter(every, numpy.int64, sum(sizes))
            self.first = numpy.cumsum([0, *sizes])

    def begin(self, document: int, slot: int) -> None:
        """Begin a document: code its length if no token ends it, and what no token is before."""
        self.how.predictor.reset(slot)
        self.pieces.append([])
        given = None if self.given is None else self.given[document]
        end = -1
        if self.tokens.eos is None:
            length = None if given is None else len(given.ids)
            bits = self.coder.code_uniform(
                COUNT_BITS, None if length is None else length.bit_length()
            )
            end = _code_count(self.coder, length, bits) - 1
        next_id = 0 if self.ids is None else int(self.first[document]) + 1
        column = [document, slot, self.tokens.bos, 0, end, 0, next_id]
        opened = numpy.array(column, dtype=numpy.int64)[:, None]
        if self.tokens.bos == NO_BOS and end != 0:  # a token that follows nothing is any token
            size = max(2, self.how.predictor.vocab_size)
            wanted = None if given is None else given.ids[1]
            self._append(opened, numpy.array([self.coder.code_uniform(size, wanted)]))
        self.active = numpy.concatenate([self.active, opened], axis=1)

    def step(self) -> None:
        """Code the next token of each document that has not ended."""
        ended = self.find_ended()
        going = numpy.delete(self.active, ended, axis=1) if len(ended) else self.active
        if not going.shape[1]:
            return
        self.how.predictor.append(going[_SLOT], going[_LAST])
        wanted = None if self.ids is None else self.ids[going[_NEXT]]
        self._append(going, code_tokens(self.how.predictor, going[_SLOT], self.coder, wanted))
        if len(ended):
            going = numpy.concatenate([self.active[:, ended], going], axis=1)
        self.active = going

    def find_ended(self) -> Integers:
        """Return the columns of the documents that have ended."""
        at_end = self.active[_LENGTH] == self.active[_END]
        if self.tokens.eos is not None:
            at_end = (self.active[_LAST] == self.tokens.eos) & (self.active[_LENGTH] > 0)
        return numpy.flatnonzero(at_end)

    def end(self) -> list[tuple[int, int]]:
        """Code what is spelled of the documents that have ended; return their slots and lengths."""
        ended = self.find_ended()
        columns = self.active[:, ended].T.tolist()
        for column in columns:
            self._spell(column[_DOCUMENT], column[_UNKNOWN])
        if len(ended):
            self.active = numpy.ascontiguousarray(numpy.delete(self.active, ended, axis=1))
        return [(column[_SLOT], column[_LENGTH]) for column in columns]

    def collect(self) -> list[CodedDocument]:
        """Return all documents."""
        lists: list[list[int]] = [[self.tokens.bos] for _ in self.pieces]
        if self.found:
            documents, tokens = (numpy.concatenate(part) for part in zip(*self.found, strict=True))
            tokens = tokens[numpy.argsort(documents, kind="stable")]
            ends = numpy.cumsum(numpy.bincount(documents, minlength=len(lists)))
            for ids, part in zip(lists, numpy.split(tokens, ends[:-1]), strict=True):
                ids += part.tolist()
        return [CodedDocument(*both) for both in zip(lists, self.pieces, strict=True)]

    def _append(self, columns: Integers, tokens: Integers) -> None:
        """Append a token to each of these documents."""
        self.found.append((columns[_DOCUMENT].copy(), tokens))
        self.coded += len(tokens)
        columns[_LAST] = tokens
        columns[_LENGTH] += 1
        columns[_NEXT] += 1
        if self.tokens.unknown is not None:
            columns[_UNKNOWN] += tokens == self.tokens.unknown

    def _spell(self, document: int, count: int) -> None:
        """Code the pieces that are spelled beside a document's tokens, as the ruler charges them.

        There is one for each unknown token, else their number is coded too.
        """
        coder, given = self.coder, None if self.given is None else self.given[document].pieces
        wanted = None if given is None else numpy.array([int(len(given) != count)])
        if coder.code(numpy.array([[1 - SURPRISE, SURPRISE]]), wanted)[0]:
            count = _code_count(coder, None if given is None else len(given), COUNT_BITS)
        for place in range(count):
            piece = None if given is None else given[place]
            self.pieces[document].append(_spell_piece(coder, piece))


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
    for left, parts in _plan_digits(predictor.vocab_size):
        sums = predictor.cumulate(slots, low[:, None] + parts)
        ranges = sums[:, -1:] - sums[:, :1]
        if not ranges.all():
            raise RunError("the code is of tokens that the model does not have")
        found = coder.code(
            (sums[:, 1:] - sums[:, :-1]) / ranges,
            None if wanted is None else (wanted - low) >> left,
        )
        low += found << left
    return low


@cache
def _plan_digits(vocab_size: int) -> list[tuple[int, Integers]]:
    """Return of each digit how many bits are below it, and where its parts begin and the last ends.

    The bits are shared out evenly.
    """
    plan = []
    left = max(1, (vocab_size - 1).bit_length())
    while left:
        digits = -(-left // DIGIT_BITS)
        bits = -(-left // digits)
        left -= bits
        plan.append((left, numpy.arange(2**bits + 1) << left))
    return plan


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
