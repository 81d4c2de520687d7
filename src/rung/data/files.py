"""Documents from files: plain text, and tables with a text column, plain or compressed.

Text streams through in chunks, so that no corpus is held in memory. Notes name what is not read.
"""

import contextlib
import hashlib
import json
import logging
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

from rung.data.encoding import COMPRESSED_SUFFIXES, normalize_encoding, read_lines
from rung.data.notes import CorpusNotes, abbreviate_list, printable_path
from rung.data.tables import (
    NoTextColumnError,
    TableFile,
    check_text,
    find_text_column,
    note_without_text,
    read_table,
)
from rung.errors import CorpusError
from rung.files import move_into_place, temporary_path

DocumentKind = Literal["lines", "paragraphs", "file"]

PROSE_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".log")
CODE_SUFFIXES = (
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".hs", ".java", ".jl"),
    *(".js", ".kt", ".lua", ".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift"),
    ".ts",
)
TEXT_SUFFIXES = (*PROSE_SUFFIXES, *CODE_SUFFIXES)
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

MAX_DOCUMENT_LENGTH = 16_000  # characters


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read files: the unit of a document in plain text, a table's text column, the encoding.

    Raises `CorpusError` for a kind of document or an encoding that does not exist.
    """

    documents: DocumentKind = "paragraphs"
    column: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.documents not in get_args(DocumentKind):
            raise CorpusError(
                f"--documents {self.documents!r}: choose from {', '.join(get_args(DocumentKind))}"
            )
        if self.encoding is not None:
            object.__setattr__(self, "encoding", normalize_encoding(self.encoding))


class Chunking(NamedTuple):
    """Content-defined chunking of paragraphs into documents; lengths are in characters.

    A document of `min_length` ends after a paragraph whose hash says so, one paragraph in `one_in`.
    Counting would not do: with hashes, text added anywhere moves only the boundaries next to it.
    Beyond `max_paragraph` a paragraph may be text without blank lines, so each further line counts
    as a paragraph. A line of more than `max_line` is cut.
    """

    min_length: int
    max_paragraph: int
    one_in: int
    max_line: int


COARSE_CHUNKING = Chunking(
    min_length=1_000, max_paragraph=4_000, one_in=8, max_line=MAX_DOCUMENT_LENGTH
)
# For a text of a few pages.
FINE_CHUNKING = Chunking(min_length=200, max_paragraph=1_000, one_in=1, max_line=1_000)


def check_read_options(found: Sequence[Path], options: ReadOptions, notes: CorpusNotes) -> None:
    """Note the files that the column or the encoding does not apply to.

    Raises `CorpusError` where one of them applies to no file.
    """
    plain = [path for path in found if not is_table(path)]
    parquet = [path for path in found if uncompressed_suffix(path) == ".parquet"]
    for name, value, idle, why in (
        (
            "column",
            options.column,
            plain,
            f"plain text has no columns, only {' '.join(TABLE_SUFFIXES)} have",
        ),
        ("encoding", options.encoding, parquet, "Parquet files state their own"),
    ):
        if value is None or not idle:
            continue
        if len(idle) == len(found):
            names = abbreviate_list(printable_path(path.name) for path in idle)
            raise CorpusError(
                f"--{name} is {value!r}, but does not apply to {names}: {why}; leave it out"
            )
        for path in idle:
            notes.add(f"--{name} does not apply to {{count}} file{{s}}", printable_path(path))


def save_stdin(stream: IO[bytes], folder: Path) -> Path:
    """Write the stream to `stdin-DIGEST.txt` in `folder`, so that equal text is one file.

    Raises `CorpusError` where the stream is empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with temporary_path(folder / "stdin") as beside:
        with beside.open("wb") as file:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if not beside.stat().st_size:
            raise CorpusError("standard input is empty: pipe a text into it, or name a file")
        kept = folder / f"stdin-{digest.hexdigest()[:12]}.txt"
        move_into_place(beside, kept)
    return kept


def has_readable_suffix(path: Path) -> bool:
    return uncompressed_suffix(path) in (*TEXT_SUFFIXES, *TABLE_SUFFIXES)


def is_table(path: Path) -> bool:
    """Return whether the suffix is that of a table, whose rows are documents."""
    return uncompressed_suffix(path) in TABLE_SUFFIXES


def fingerprint_files(found: list[Path]) -> str:
    """Return the files' sizes and times as JSON.

    The time of the last status change is among them: it tells a change after which size and
    modification time were restored.
    """
    return json.dumps(
        [
            (str(p.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            for p in found
            for s in (p.stat(),)
        ]
    )


def uncompressed_suffix(path: Path) -> str:
    """Return the last suffix in lower case, that of compression left out."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def check_file(path: Path) -> None:
    """Raise `CorpusError` where `path` is no file, or a pipe: that is read once, and may wait."""
    if path.is_file():
        return
    shown = printable_path(path)
    if path.is_dir():
        raise CorpusError(f"{shown} is a folder: name a file")
    if path.exists():
        raise CorpusError(
            f"{shown} cannot be read twice, as a pipe or a device: write its text to a file"
        )
    raise CorpusError(f"no such file: {shown}")


def read_text_file(path: Path, encoding: str | None = None) -> str:
    r"""Read all text of a file, its line ends as `\n`.

    Raises `CorpusError` for a file that is empty or cannot be read.
    """
    check_file(path)
    text = "".join(read_lines(path, ReadOptions(encoding=encoding).encoding, CorpusNotes()))
    if not text:
        raise CorpusError(f"{printable_path(path)} is empty")
    return text


def read_documents(
    found: list[Path],
    options: ReadOptions,
    notes: CorpusNotes,
    chunking: Chunking = COARSE_CHUNKING,
) -> Iterator[str]:
    """Yield the documents of the files in order; notes say what was skipped, cut or decided.

    Where each line is a document, so is an empty line, as for KenLM, except in a file without text.
    Raises `CorpusError` when no file has text, and for a file that is binary, in another encoding,
    damaged, not readable, or a table without a text column.
    """
    empty: list[Path] = []
    unnamed: list[NoTextColumnError] = []
    for path in found:
        size = 0
        waiting: list[str] = []  # empty lines before the first text
        try:
            for document in _read_file(path, options, notes, chunking):
                waiting.append(document)
                if size or document.strip():
                    size += len(waiting)
                    yield from waiting
                    waiting.clear()
        except NoTextColumnError as error:
            # A .json file among others may be settings, and no table at all.
            if uncompressed_suffix(path) != ".json" or len(found) == 1:
                raise
            unnamed.append(error)
            notes.add("skipped {count} file{s} without a text column", printable_path(path))
            continue
        if not size:
            empty.append(path)
            notes.add("skipped {count} file{s} without text", printable_path(path))
    if unnamed and len(unnamed) + len(empty) == len(found):
        raise unnamed[0]
    if len(empty) == len(found):
        raise CorpusError(_explain_no_text(found))


def _explain_no_text(found: list[Path]) -> str:
    names = abbreviate_list(printable_path(path) for path in found)
    if len(found) > 1:
        return f"none of {len(found)} files contains any text: {names}"
    return f"{names} is empty" if found[0].stat().st_size == 0 else f"{names} contains no text"


def hash_to_unit_interval(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def read_text_column(
    rows: Any, where: str, column: str | None = None, notes: CorpusNotes | None = None
) -> Iterator[str]:
    """Yield the text of each row of a data set; blank ones are skipped, with a note.

    Raises `CorpusError` when there is no such column, or its values are not text.
    """
    if not _columns(rows):
        return
    rows, name = select_text_column(rows, where, column)
    without = 0
    for row in rows:
        if text := check_text(row[name], name, where):
            yield text
        else:
            without += 1
    if notes is not None:
        note_without_text(without, name, where, notes)


def select_text_column(rows: Any, where: str, column: str | None = None) -> tuple[Any, str]:
    """Return the rows with their text column only, and its name.

    Raises `CorpusError` when there is none.
    """
    name = find_text_column(_columns(rows), where, column)
    return rows.select_columns([name]), name


def _columns(rows: Any) -> list[str]:
    # A stream may know its columns from the first row only.
    return list(rows.features or next(iter(rows), {}))


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep `datasets` from logging the errors that it raises as well."""
    logger = logging.getLogger("datasets")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _read_file(
    path: Path, options: ReadOptions, notes: CorpusNotes, chunking: Chunking
) -> Iterator[str]:
    kind = uncompressed_suffix(path)
    if kind in TABLE_SUFFIXES:
        table = TableFile(
            path=path, kind=kind, column=options.column, encoding=options.encoding, notes=notes
        )
        return _cut_if_few(read_table(table), path, notes, chunking)
    lines = read_lines(path, options.encoding, notes)
    if options.documents == "lines":
        return _cut_if_few((line.rstrip("\n") for line in lines), path, notes, chunking)
    if options.documents == "file":
        return _cut_if_few(filter(str.strip, ["".join(lines)]), path, notes, chunking)
    return join_paragraphs(_cut_long(lines, path, notes, chunking), chunking)


def _cut_if_few(
    documents: Iterable[str], path: Path, notes: CorpusNotes, chunking: Chunking
) -> Iterator[str]:
    """Cut long documents where finer chunking is asked for: a few documents cannot be split."""
    if chunking is COARSE_CHUNKING:
        return iter(documents)
    return _cut_long(documents, path, notes, chunking)


def _cut_long(
    texts: Iterable[str], path: Path, notes: CorpusNotes, chunking: Chunking
) -> Iterator[str]:
    """Yield the lines or documents, those that are too long in pieces."""
    for text in texts:
        if len(text) <= chunking.max_line:
            yield text
            continue
        notes.add(
            f"{{count}} text{{s}} of more than {chunking.max_line:,} characters cut into documents",
            printable_path(path),
        )
        yield from cut_text(text, chunking.min_length // 4, chunking.max_paragraph // 4)


WHITE_SPACE = re.compile(r"\s+")
BOUNDARY_CONTEXT = 12  # characters before a position, which decide whether the text is cut there


def cut_text(text: str, min_length: int, max_length: int) -> Iterator[str]:
    """Yield pieces of `text` between these lengths, cut after white space or between characters.

    The characters before a position decide whether to cut there, so that text added anywhere moves
    only the cuts next to it. The last piece may be shorter.
    """
    start = 0
    while len(text) - start > max_length:
        spaces = WHITE_SPACE.finditer(text, start + min_length, start + max_length)
        places: Sequence[int] = [
            match.end() for match in spaces if match.end() < start + max_length
        ]
        window = range(start + min_length, start + max_length)
        places = places or [at for at in window if not _joins(text[at - 1 : at + 1])] or window
        end = min(
            places,
            key=lambda at: zlib.crc32(
                text[at - BOUNDARY_CONTEXT : at].encode("utf-8", "surrogatepass")
            ),
        )
        yield text[start:end]
        start = end
    yield text[start:]


def _joins(pair: str) -> bool:
    """Return whether the second of two code points is a mark, a variation or a joiner."""
    return unicodedata.category(pair[1]) in ("Mn", "Me", "Mc") or "\u200d" in pair


def join_paragraphs(lines: Iterable[str], chunking: Chunking) -> Iterator[str]:
    """Yield documents of whole paragraphs with the blank lines after them, as `chunking` says."""
    document: list[str] = []
    size = start = paragraph_size = 0
    ended = False
    for line in lines:
        blank = not line.strip()
        if ended and not blank:
            yield "".join(document)
            document, size, start, paragraph_size, ended = [], 0, 0, 0, False
        document.append(line)
        size += len(line)
        paragraph_size += len(line)
        if ended or not (blank or paragraph_size >= chunking.max_paragraph):
            continue
        sign = "".join(document[start:]) if blank else line
        if blank:
            start, paragraph_size = len(document), 0
        stop = size >= MAX_DOCUMENT_LENGTH or (
            size >= chunking.min_length and hash_to_unit_interval(sign) < 1 / chunking.one_in
        )
        ended = stop and bool(sign.strip())
    if "".join(document).strip():
        yield "".join(document)
