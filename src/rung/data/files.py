"""Documents from files: plain text, and tables with a text column, plain or compressed.

Nothing here holds a whole corpus: text streams through in chunks. What is not read is named.
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

from rung.data.encoding import COMPRESSED_SUFFIXES, check_encoding, read_lines
from rung.data.notes import CorpusNotes, abbreviate_list, printable_path
from rung.data.tables import (
    NoTextColumnError,
    TableFile,
    check_text,
    find_text_column,
    note_without_text,
    read_table,
)
from rung.errors import CorpusError, first_line
from rung.files import choose_beside, put_in_place

__all__ = ["check_text", "first_line"]

DocumentKind = Literal["lines", "paragraphs", "file"]

PROSE_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".log")
CODE_SUFFIXES = (
    *(
        ".py",
        ".pyi",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".hpp",
        ".cs",
        ".go",
        ".hs",
        ".java",
        ".jl",
        ".js",
        ".kt",
        ".lua",
    ),
    *(".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts"),
)
TEXT_SUFFIXES = (*PROSE_SUFFIXES, *CODE_SUFFIXES)
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

LONGEST_DOCUMENT = 16_000


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files are read: what a document is in plain text, which column of a table is text, and in
    which encoding.

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
            object.__setattr__(self, "encoding", check_encoding(self.encoding))


class Chunking(NamedTuple):
    """How paragraphs are joined: a document ends where a paragraph's own hash says so, one in
    `one_in`.

    A counter would not do: this way text added anywhere moves only the boundaries next to it. A
    paragraph longer than `longest_paragraph` may be text without blank lines: from there on each
    line is one. A line of more than `longest_line` is cut.
    """

    shortest: int
    longest_paragraph: int
    one_in: int
    longest_line: int


COARSE_CHUNKING = Chunking(
    shortest=1_000, longest_paragraph=4_000, one_in=8, longest_line=LONGEST_DOCUMENT
)
FINE_CHUNKING = Chunking(
    shortest=200, longest_paragraph=1_000, one_in=1, longest_line=1_000
)  # for a text of a few pages


def check_reading(found: Sequence[Path], reading: ReadOptions, notes: CorpusNotes) -> None:
    """Note the files that have no use for the column or the encoding that is named.

    Raises `CorpusError` where none of them has.
    """
    plain = [path for path in found if not is_table(path)]
    parquet = [path for path in found if uncompressed_suffix(path) == ".parquet"]
    for name, value, idle, why in (
        (
            "column",
            reading.column,
            plain,
            f"plain text has no columns, only {' '.join(TABLE_SUFFIXES)} have",
        ),
        ("encoding", reading.encoding, parquet, "Parquet knows its own"),
    ):
        if value is None or not idle:
            continue
        if len(idle) == len(found):
            names = abbreviate_list(printable_path(path.name) for path in idle)
            raise CorpusError(
                f"--{name} is {value!r}, but cannot be of {names}: {why}; leave it out"
            )
        for path in idle:
            notes.add(f"--{name} is not for {{count}} file{{s}}", printable_path(path))


def save_stdin(stream: IO[bytes], folder: Path) -> Path:
    """Write what is read from `stream` to a file in `folder`, which is called after its content.

    So the same text is the same file. Raises `CorpusError` where nothing comes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with choose_beside(folder / "stdin") as beside:
        with beside.open("wb") as file:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if not beside.stat().st_size:
            raise CorpusError("standard input is empty: pipe a text into it, or name a file")
        kept = folder / f"stdin-{digest.hexdigest()[:12]}.txt"
        put_in_place(beside, kept)
    return kept


def is_readable_kind(path: Path) -> bool:
    """Whether the suffix is one of those that corpora come in."""
    return uncompressed_suffix(path) in (*TEXT_SUFFIXES, *TABLE_SUFFIXES)


def is_table(path: Path) -> bool:
    """Whether its rows are its documents."""
    return uncompressed_suffix(path) in TABLE_SUFFIXES


def fingerprint_files(found: list[Path]) -> str:
    """Changes when a file does, even where its old size and time were put back."""
    return json.dumps(
        [
            (str(p.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            for p in found
            for s in (p.stat(),)
        ]
    )


def uncompressed_suffix(path: Path) -> str:
    """The suffix that says how to read a file, looking through `.gz` and `.zst`."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_text_file(path: Path, encoding: str | None = None) -> str:
    r"""All text of a file, its line ends as `\n`.

    Raises `CorpusError` for a file that has none or cannot be read.
    """
    if not path.is_file():
        what = (
            f"{printable_path(path)} is a folder: name a file"
            if path.is_dir()
            else f"no such file: {printable_path(path)}"
        )
        raise CorpusError(what)
    text = "".join(read_lines(path, ReadOptions(encoding=encoding).encoding, CorpusNotes()))
    if not text:
        raise CorpusError(f"{printable_path(path)} is empty")
    return text


def read_documents(
    found: list[Path], reading: ReadOptions, notes: CorpusNotes, grain: Chunking = COARSE_CHUNKING
) -> Iterator[str]:
    """Every document of the files, in order; what is passed over, cut or settled goes to the notes.

    Where each line is one, empty lines are too, as they are for KenLM, but in a file that has no
    text. Raises `CorpusError` when no file has any, and for one that is binary, in another
    encoding, damaged, not permitted, or a table that has no text column.
    """
    empty: list[Path] = []
    unnamed: list[NoTextColumnError] = []
    for path in found:
        size = 0
        waiting: list[str] = []  # empty lines before the first text
        try:
            for document in _read_file(path, reading, notes, grain):
                waiting.append(document)
                if size or document.strip():
                    size += len(waiting)
                    yield from waiting
                    waiting.clear()
        except NoTextColumnError as error:
            if (
                uncompressed_suffix(path) != ".json" or len(found) == 1
            ):  # in a folder that may be anything
                raise
            unnamed.append(error)
            notes.add("{count} file{s} without a text column passed over", printable_path(path))
            continue
        if not size:
            empty.append(path)
            notes.add("{count} file{s} without text passed over", printable_path(path))
    if unnamed and len(unnamed) + len(empty) == len(found):
        raise unnamed[0]
    if len(empty) == len(found):
        raise CorpusError(_explain_no_text(found))


def _explain_no_text(found: list[Path]) -> str:
    only = printable_path(found[0])
    if len(found) > 1:
        return f"none of {len(found)} files holds any text: {only}, ..."
    return (
        f"{only} is empty"
        if found[0].stat().st_size == 0
        else f"{only} holds too little text: none at all"
    )


def hash_to_unit_interval(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def read_texts(
    rows: Any, where: str, column: str | None = None, notes: CorpusNotes | None = None
) -> Iterator[str]:
    """The text column of each row of a data set, blank ones left out, and noted.

    Raises `CorpusError` when there is no such column, or it holds something else.
    """
    if not _columns(rows):
        return
    rows, name = select_text(rows, where, column)
    without = 0
    for row in rows:
        if text := check_text(row[name], name, where):
            yield text
        else:
            without += 1
    if notes is not None:
        note_without_text(without, name, where, notes)


def select_text(rows: Any, where: str, column: str | None = None) -> tuple[Any, str]:
    """The rows with nothing but their text column, and its name.

    Raises `CorpusError` when there is none.
    """
    name = find_text_column(_columns(rows), where, column)
    return rows.select_columns([name]), name


def _columns(rows: Any) -> list[str]:
    return list(
        rows.features or next(iter(rows), {})
    )  # a stream knows its columns from the first row


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """`datasets` logs an error that it raises as well: once is enough."""
    logger = logging.getLogger("datasets")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _read_file(
    path: Path, reading: ReadOptions, notes: CorpusNotes, grain: Chunking
) -> Iterator[str]:
    kind = uncompressed_suffix(path)
    if kind in TABLE_SUFFIXES:
        table = TableFile(
            path=path, kind=kind, column=reading.column, encoding=reading.encoding, notes=notes
        )
        return _cut_all(read_table(table), path, notes, grain)
    lines = read_lines(path, reading.encoding, notes)
    if reading.documents == "lines":
        return _cut_all((line.rstrip("\n") for line in lines), path, notes, grain)
    if reading.documents == "file":
        return _cut_all(filter(str.strip, ["".join(lines)]), path, notes, grain)
    return _join_paragraphs(_cut_long(lines, path, notes, grain), grain)


def _cut_all(
    documents: Iterable[str], path: Path, notes: CorpusNotes, grain: Chunking
) -> Iterator[str]:
    """The documents whole; of few, which must be split somewhere, the long ones cut."""
    return iter(documents) if grain is COARSE_CHUNKING else _cut_long(documents, path, notes, grain)


def _cut_long(
    texts: Iterable[str], path: Path, notes: CorpusNotes, grain: Chunking
) -> Iterator[str]:
    """The lines or documents, those that are too long in pieces."""
    for text in texts:
        if len(text) <= grain.longest_line:
            yield text
            continue
        notes.add(
            f"{{count}} text{{s}} of more than {grain.longest_line:,} characters "
            "cut into documents",
            printable_path(path),
        )
        yield from cut_text(text, grain.shortest // 4, grain.longest_paragraph // 4)


WHITE_SPACE = re.compile(r"\s+")
CONTEXT = 12  # characters before a place, which decide whether the text is cut there


def cut_text(text: str, shortest: int, longest: int) -> Iterator[str]:
    """Pieces of `text` between these lengths, cut after white space, and where there is none
    between two characters.

    What stands before a place decides whether it is one to cut at, so that text added anywhere
    moves only the cuts next to it. The last piece may be shorter.
    """
    start = 0
    while len(text) - start > longest:
        spaces = WHITE_SPACE.finditer(text, start + shortest, start + longest)
        places: Sequence[int] = [match.end() for match in spaces if match.end() < start + longest]
        window = range(start + shortest, start + longest)
        places = places or [at for at in window if not _joins(text[at - 1 : at + 1])] or window
        end = min(
            places,
            key=lambda at: zlib.crc32(text[at - CONTEXT : at].encode("utf-8", "surrogatepass")),
        )
        yield text[start:end]
        start = end
    yield text[start:]


def _joins(pair: str) -> bool:
    """Whether the second of two code points belongs to the first: a combining mark, a variation, a
    joiner.
    """
    return unicodedata.category(pair[1]) in ("Mn", "Me", "Mc") or "\u200d" in pair


def _join_paragraphs(lines: Iterable[str], grain: Chunking) -> Iterator[str]:
    """Whole paragraphs, joined until one of them says stop, with the blank lines after it; at most
    the file.
    """
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
        if ended or not (blank or paragraph_size >= grain.longest_paragraph):
            continue
        sign = "".join(document[start:]) if blank else line
        if blank:
            start, paragraph_size = len(document), 0
        stop = size >= LONGEST_DOCUMENT or (
            size >= grain.shortest and hash_to_unit_interval(sign) < 1 / grain.one_in
        )
        ended = stop and bool(sign.strip())
    if "".join(document).strip():
        yield "".join(document)
