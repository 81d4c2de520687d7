"""The surprisal of each word of a file: read its documents or its column of words, score, note."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from rung.data.files import (
    ReadOptions,
    check_file,
    check_read_options,
    is_table,
    read_text_file,
    uncompressed_suffix,
)
from rung.data.notes import CorpusNotes, printable_path
from rung.data.tables import TableFile, read_column
from rung.errors import CorpusError, RecipeError, did_you_mean
from rung.evaluation.alignment import Span
from rung.evaluation.likelihood import needs_renormalization
from rung.evaluation.metrics import MAX_BYTES_PER_WORD, RENORMALIZED
from rung.evaluation.word_surprisal import (
    WordScore,
    find_boundary_tokens,
    find_words,
    score_words,
)
from rung.models.base import CausalModel
from rung.progress import OnProgress, Progress

WordDocuments = Literal["file", "lines"]
TOLD_WORDS = 100  # words between two reports of the progress


def score_words_of_file(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    documents: str,
    options: ReadOptions,
    on_progress: OnProgress,
) -> list[WordScore]:
    """Score each word of a text between white space, or each row of a table's `options.column`.

    `documents` is what a document is in a text: the `file` or each of its `lines`. A table is one
    document, its words with a space between them. Raises `CorpusError` for a file that is empty,
    cannot be read or has no words, and `RecipeError` for options that the file has no use for.
    """
    on_progress(Progress("reading"))
    if path.is_file():
        check_read_options([path], options, CorpusNotes())
    if is_table(path):
        texts = [_read_word_table(path, documents, options)]
    else:
        texts = _read_text(path, documents, options)
    total = sum(len(words) for _, words in texts)
    if not total:
        raise CorpusError(f"{printable_path(path)} has no words: it is white space")
    on_progress(Progress("scoring", 0, total))
    found = []
    for score in score_words(model, tokenizer, texts):
        found.append(score)
        if len(found) % TOLD_WORDS == 0 or len(found) == total:
            on_progress(Progress("scoring", len(found), total))
    for note in _list_notes(model, tokenizer, texts, found):
        on_progress(Progress("noted", note=note))
    return found


def _read_text(path: Path, documents: str, options: ReadOptions) -> list[tuple[str, list[Span]]]:
    if (documents or "file") not in get_args(WordDocuments):
        raise RecipeError(
            f"--documents is {documents!r}: {did_you_mean(documents, get_args(WordDocuments))}"
        )
    text = read_text_file(path, options.encoding)
    texts = text.split("\n") if documents == "lines" else [text]
    return [(text, find_words(text)) for text in texts]


def _read_word_table(path: Path, documents: str, options: ReadOptions) -> tuple[str, list[Span]]:
    """Join the words of a column. Raises `CorpusError` for a row without a word."""
    if not options.column:
        raise RecipeError(
            f"{printable_path(path)} is a table: name the column that has its words, with --column"
        )
    if documents:
        raise RecipeError(
            f"--documents is {documents!r}, but a table of words is one document: leave it out"
        )
    check_file(path)
    table = TableFile(
        path=path,
        kind=uncompressed_suffix(path),
        column=options.column,
        encoding=options.encoding,
        notes=CorpusNotes(),
    )
    words = [word.strip() for word in read_column(table)]
    if "" in words:
        raise CorpusError(
            f"{table.where}: row {words.index('') + 1} has no word in column {options.column!r}: "
            "each row must have one"
        )
    ends = itertools.accumulate(words, lambda end, word: end + 1 + len(word), initial=-1)
    spans = [
        (end - len(word), end)
        for word, end in zip(words, itertools.islice(ends, 1, None), strict=True)
    ]
    return " ".join(words), spans


def _list_notes(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[tuple[str, list[Span]]],
    found: list[WordScore],
) -> Iterator[str]:
    """Say what the figures do not show: words that are not corrected, or not parted by spaces."""
    size = sum(len(text.encode()) for text, _ in texts)
    if size > MAX_BYTES_PER_WORD * len(found):
        yield (
            f"{size:,} bytes in {len(found):,} word{'s' * (len(found) > 1)}: the text has next to "
            "no white space; cut it into words, one in each row of a table, and name their --column"
        )
    plain = sum(not score.is_corrected for score in found)
    boundaries = find_boundary_tokens(tokenizer, model.config.vocab_size) if plain else None
    if boundaries and not boundaries.spaces.any():
        yield "no token begins with white space, so nothing is corrected"
    elif plain:
        yield (
            f"{plain:,} of {len(found):,} words are not corrected, or at one end only: a token "
            "there belongs to two words, or does not begin with the white space between them"
        )
    if unknown := sum(score.is_unknown for score in found):
        yield f"{unknown:,} unknown word{'s' * (unknown > 1)}, charged for the spelling"
    if needs_renormalization(model):
        yield f"no distribution; {RENORMALIZED}"
