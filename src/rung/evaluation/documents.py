"""Documents as the ruler scores them: token ids from BOS to EOS, with the text's own counts."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from rung.evaluation.alignment import Aligner

_Document = TypeVar("_Document")

DOCUMENTS_AT_ONCE = 64
# Stands before a document whose tokenizer has no begin-of-text token. The first token follows
# nothing that the model could be asked about, and costs log V nats.
NO_BOS = -1


@dataclass(frozen=True)
class TokenizedDocument:
    """A document's token ids from BOS to EOS, and the counts of its text.

    `unknown` are the words without a token, `dropped` the pieces that the tokenizer drops or
    replaces, `lost` the names of what else it does not keep.
    """

    ids: list[int]
    bytes: int
    words: int
    unknown: list[str]
    dropped: list[str]
    lost: tuple[str, ...]

    @property
    def spelling(self) -> float:
        """Return the nats that spell its unknown words and its dropped text."""
        return sum(map(spelling_cost, [*self.unknown, *self.dropped]))

    @property
    def key(self) -> int:
        """Return a hash that copies of the document share."""
        return hash((tuple(self.ids), tuple(self.unknown), tuple(self.dropped)))


def tokenize_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[TokenizedDocument]:
    """Tokenize each text as a document; empty lines are skipped."""
    for text, aligned in Aligner(tokenizer).align(filter(str.strip, texts)):
        ids = add_document_ends(aligned.encoding.ids, tokenizer)
        unknown, dropped = (
            [text[slice(*span)] for span in spans] for spans in (aligned.unknown, aligned.dropped)
        )
        yield TokenizedDocument(
            ids, len(text.encode()), len(text.split()), unknown, dropped, aligned.lost
        )


def add_document_ends(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a document's ids from BOS to EOS.

    A tokenizer without BOS gives `NO_BOS` in its place, of which `compute_nll` knows that the next
    token follows nothing. One without EOS gives no end, which is then not scored.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [NO_BOS if bos is None else bos, *ids, *([] if eos is None else [eos])]


def batch_documents(documents: Iterable[_Document], size: int) -> Iterator[list[_Document]]:
    """Yield lists of `size` documents, the last one shorter."""
    iterator = iter(documents)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def take_texts(texts: Iterable[str], limit: int) -> list[str]:
    """Return the first texts, up to `limit` characters in all; a longer first text is cut."""
    kept: list[str] = []
    size = 0
    for text in texts:
        if kept and size + len(text) > limit:
            break
        kept.append(text[:limit])
        size += len(text)
    return kept


def spelling_cost(word: str) -> float:
    """Return the nats that spell a word: each byte and the end, at log(257) each."""
    return (len(word.encode()) + 1) * math.log(257)
