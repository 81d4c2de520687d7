"""Make readers: each yields the documents of a source anew, and has the key of its text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rung.data import files, toy_language
from rung.data.notes import CorpusNotes, LoadingNotes
from rung.data.sources import join_articles
from rung.data.store import DocumentReader

if TYPE_CHECKING:
    from datasets import Dataset

KeyedReader = tuple[DocumentReader, str]  # the key changes when the documents do


def make_file_reader(
    found: list[Path],
    options: files.ReadOptions,
    notes: LoadingNotes,
    chunking: files.Chunking = files.COARSE_CHUNKING,
) -> KeyedReader:
    """Make a reader of the documents in files."""

    def read() -> Iterator[tuple[str, str]]:
        # Notes of a second reading, with finer chunking, replace those of the first.
        reading = notes.reading[str(found)] = CorpusNotes()
        return ((text, "") for text in files.read_documents(found, options, reading, chunking))

    given = [value for value in (options.documents, options.column, options.encoding) if value]
    key = f"{json.dumps(given)} {files.fingerprint_files(found)}"
    return read, key if chunking is files.COARSE_CHUNKING else f"fine {key}"


def make_article_reader(rows: "Dataset") -> KeyedReader:
    """Make a reader of WikiText's articles, whose lines are rows."""

    def read() -> Iterator[tuple[str, str]]:
        return ((text, "") for text in join_articles(row["text"] for row in rows))

    return read, f"articles {rows._fingerprint}"


def make_row_reader(
    rows: "Dataset", where: str, column: str | None, notes: LoadingNotes
) -> KeyedReader:
    """Make a reader of the text column of a data set's rows."""

    def read() -> Iterator[tuple[str, str]]:
        reading = notes.reading[rows._fingerprint] = CorpusNotes()
        return ((text, "") for text in files.read_text_column(rows, where, column, reading))

    return read, f"rows {f'{column} ' if column else ''}{rows._fingerprint}"


def make_toy_reader(size: int, seed: int) -> KeyedReader:
    """Make a reader of the documents that toy-language's grammar draws."""

    def read() -> Iterator[tuple[str, str]]:
        return ((text, "") for text in toy_language.draw_documents(size, seed))

    return read, f"{toy_language.NAME} {toy_language.VERSION} {(size, seed)}"
