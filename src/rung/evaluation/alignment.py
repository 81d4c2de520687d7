"""Align tokens with the text they came from, and find the text that they do not keep.

Unknown words and text that a tokenizer drops or replaces are found as spans, which the ruler
charges for their spelling. White space, and the case, accents and Unicode form that a tokenizer
folds by design (`lossy_features`), are named and not charged. A tokenizer that provably loses
nothing is believed; for any other, each text is compared with what its tokens decode to.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Encoding, decoders, normalizers
from transformers import PreTrainedTokenizerBase

from rung.data.tokenizer import (
    ENCODE_BATCH_SIZE,
    encode_ordinary,
    find_unk_token_id,
    lossy_features,
)

Span = tuple[int, int]
LOST_WHITE_SPACE, DROPPED_TEXT = "white space", "dropped text"
FOLDS = {
    "Unicode form": (normalizers.NFKD,),
    "accents": (normalizers.NFKD, normalizers.StripAccents),
    "case": (normalizers.Lowercase,),
}


@dataclass(frozen=True)
class Alignment:
    """A text's tokens, its spans of unknown words and of dropped text, and the features it lost."""

    encoding: Encoding
    unknown: list[Span]
    dropped: list[Span]
    lost: tuple[str, ...]


class Aligner:
    """Encodes texts, and compares each with what its tokens keep."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.lost = lossy_features(tokenizer)
        self.unknown = find_unk_token_id(tokenizer) if "unknown words" in self.lost else None
        self.decoder = _find_decoder(tokenizer)
        model = tokenizer.backend_tokenizer.model
        self.prefix = getattr(model, "continuing_subword_prefix", None) or ""
        self.suffix = getattr(model, "end_of_word_suffix", None) or ""
        # Where a byte's token is named <0x41>, a text that says <0x41> decodes to the byte.
        self.is_believed = (
            not self.lost and tokenizer.backend_tokenizer.token_to_id("<0x41>") is None
        )

    def align(self, texts: Iterable[str]) -> Iterator[tuple[str, Alignment]]:
        """Yield each text with its alignment, a few texts in memory at a time."""
        source = iter(texts)
        while batch := list(itertools.islice(source, ENCODE_BATCH_SIZE)):
            for text, encoding in zip(batch, encode_ordinary(self.tokenizer, batch), strict=True):
                yield (
                    text,
                    Alignment(encoding, [], [], ())
                    if self.is_believed
                    else self._compare(text, encoding),
                )

    def _compare(self, text: str, encoding: Encoding) -> Alignment:
        unknown = self._find_unknown(encoding)
        kept = self.decoder.decode(
            [t for t, id in zip(encoding.tokens, encoding.ids, strict=True) if id != self.unknown]
        )
        known = _leave_out(text, unknown)
        if _fold(known, self.lost) == _fold(kept, self.lost):
            return Alignment(encoding, unknown, [], self.lost)
        dropped = _fold(known, (*self.lost, LOST_WHITE_SPACE)) != _fold(
            kept, (*self.lost, LOST_WHITE_SPACE)
        )
        spans = self._find_dropped(text, encoding) if dropped else []
        lost = (*self.lost, DROPPED_TEXT) if spans else self.lost
        if LOST_WHITE_SPACE not in lost and _count_white_space(kept) < _count_white_space(known):
            lost = (*lost, LOST_WHITE_SPACE)
        return Alignment(encoding, unknown, spans, lost)

    def _find_unknown(self, encoding: Encoding) -> list[Span]:
        """Find the spans of unknown words; the bytes of one character are one span."""
        if self.unknown is None or self.unknown not in encoding.ids:
            return []
        spans = [
            span
            for id, span in zip(encoding.ids, encoding.offsets, strict=True)
            if id == self.unknown
        ]
        return [(start, stop) for start, stop, _ in join_tokens(spans)]

    def _find_dropped(self, text: str, encoding: Encoding) -> list[Span]:
        """Find the spans that no token covers or that their tokens replace; join adjacent ones."""
        found: list[Span] = []
        at = 0
        for start, stop, places in [*join_tokens(encoding.offsets), (len(text), len(text), [])]:
            tokens = [
                encoding.tokens[place].removeprefix(self.prefix).removesuffix(self.suffix)
                for place in places
            ]
            kept = self.decoder.decode(tokens)
            is_known = self.unknown not in [encoding.ids[place] for place in places]
            for first, last, said in (
                (at, start, ""),
                (start, stop, kept if is_known else text[start:stop]),
            ):
                if _fold(text[first:last], (*self.lost, LOST_WHITE_SPACE)) != _fold(
                    said, (*self.lost, LOST_WHITE_SPACE)
                ):
                    first = found.pop()[0] if found and found[-1][1] == first else first
                    found.append((first, last))
            at = max(at, stop)
        return found


def join_tokens(offsets: Sequence[Span]) -> list[tuple[int, int, list[int]]]:
    """Join the tokens that share a character: return start, end and token indices of each span.

    A token without a character joins the span before it, or the first one.
    """
    found: list[tuple[int, int, list[int]]] = []
    for place, (start, stop) in enumerate(offsets):
        if found and (start < found[-1][1] or stop <= found[-1][1] or found[-1][0] == found[-1][1]):
            first, last, places = found[-1]
            found[-1] = (first if first < last else start, max(last, stop), [*places, place])
        else:
            found.append((start, stop, [place]))
    return found


def _find_decoder(tokenizer: PreTrainedTokenizerBase) -> decoders.Decoder:
    """Return the tokenizer's decoder, or the one that fits how the tokenizer cuts text."""
    backend = tokenizer.backend_tokenizer
    if backend.decoder is not None:
        return backend.decoder
    cut = repr(backend.pre_tokenizer) + repr(backend.normalizer)
    if "ByteLevel" in cut:
        return decoders.ByteLevel()
    return decoders.Metaspace() if "Metaspace" in cut else decoders.Fuse()


def _fold(text: str, lost: Collection[str]) -> str:
    """Return the text without the features in `lost`."""
    if LOST_WHITE_SPACE in lost:
        text = "".join(text.split())
    if not text.isascii():
        for normalize in (
            normalize for name, each in FOLDS.items() if name in lost for normalize in each
        ):
            text = normalize().normalize_str(text)
    return text.lower() if "case" in lost and text.isascii() else text


def _leave_out(text: str, spans: list[Span]) -> str:
    starts, stops = [0, *(stop for _, stop in spans)], [*(start for start, _ in spans), len(text)]
    return "".join(text[start:stop] for start, stop in zip(starts, stops, strict=True))


def _count_white_space(text: str) -> int:
    return len(text) - len("".join(text.split()))
