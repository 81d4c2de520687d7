"""Documents from files: plain text, and tables with a text column, plain or compressed.

Nothing here holds a whole corpus: text streams through in chunks, and tables are read by `datasets`.
"""

import codecs
import contextlib
import glob
import gzip
import hashlib
import io
import itertools
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import zstandard

from rung.errors import CorpusError

DocumentKind = Literal["lines", "paragraphs", "file"]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
TABLE_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
READER_OPTIONS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False}}  # "NA" and "null" are words too
COMPRESSED_SUFFIXES = (".gz", ".zst")
TEXT_COLUMNS = ("text", "content", "document", "page")

CHUNK_BYTES = 1 << 20
ZIPPED_BYTES = 1 << 14  # read at a time from a .zst: text comes out of it many times as long
LONGEST_DOCUMENT = 16_000


class Grain(NamedTuple):
    """How paragraphs are joined: a document ends where a paragraph's own hash says so, one in `one_in`.

    A counter would not do: this way text added anywhere moves only the boundaries next to it. A paragraph
    longer than `longest_paragraph` may be text without blank lines: from there on each line is one.
    """

    shortest: int
    longest_paragraph: int
    one_in: int


COARSE = Grain(shortest=1_000, longest_paragraph=4_000, one_in=8)
FINE = Grain(shortest=200, longest_paragraph=1_000, one_in=1)  # for a text of a few pages


def find_files(source: str) -> list[Path]:
    """The files that a path, a folder or a glob names, in a fixed order.

    Raises `CorpusError` when there are none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = list_files(path)
        if not found:
            kinds = " ".join((*TEXT_SUFFIXES, *TABLE_READERS))
            raise CorpusError(f"{source} has no file that can be read: it should hold {kinds}, or these as .gz or .zst")
    elif path.is_file():
        found = [path]
    elif glob.has_magic(source):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
        found = [Path(p) for p in matches if Path(p).is_file()]
        if not found:
            raise CorpusError(f"no file matches {source}: check the pattern, and quote it in the shell")
    else:
        raise CorpusError(f"no such file or folder: {source}")
    return sorted(set(found))


def list_files(folder: Path) -> list[Path]:
    """The files in a folder and its sub-folders that can be read, hidden ones left out; perhaps none."""
    found = [p for p in folder.rglob("*") if is_readable_kind(p) and p.is_file()]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def is_readable_kind(path: Path) -> bool:
    """Whether the suffix is one of those that corpora come in."""
    return kind_suffix(path) in (*TEXT_SUFFIXES, *TABLE_READERS)


def file_facts(found: list[Path]) -> str:
    """Changes when a file does, even where its old size and time were put back."""
    return json.dumps([(str(p.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p in found for s in (p.stat(),)])


def check_document_kind(documents: str) -> None:
    """Raise `CorpusError` when `documents` is not a `DocumentKind`."""
    if documents not in get_args(DocumentKind):
        raise CorpusError(f"--documents {documents!r}: choose from {', '.join(get_args(DocumentKind))}")


def kind_suffix(path: Path) -> str:
    """The suffix that says how to read a file, looking through `.gz` and `.zst`."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_documents(files: list[Path], documents: DocumentKind, grain: Grain = COARSE) -> Iterator[str]:
    """Every document of `files`, in order; a file without text is passed over where others have some.

    Raises `CorpusError` when no file has any, and for one that is binary, not UTF-8, damaged, not permitted, or
    has no text column.
    """
    check_document_kind(documents)
    found = False
    for path in files:
        for document in _read_file(path, documents, grain):
            found = True
            yield document
    if not found:
        only = files[0]
        if len(files) > 1:
            raise CorpusError(f"none of {len(files)} files holds any text: {only}, ...")
        raise CorpusError(
            f"{only} is empty" if only.stat().st_size == 0 else f"{only} holds too little text: none at all"
        )


def hash_unit(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def find_text_column(columns: list[str], where: str) -> str:
    """The column that holds the text.

    Raises `CorpusError`, naming the columns there are, when none does.
    """
    for name in TEXT_COLUMNS:
        if name in columns:
            return name
    raise CorpusError(
        f"{where} has no text column: it has {', '.join(columns) or 'no columns'}; rename one of them to 'text'"
    )


def read_texts(rows: Any, where: str) -> Iterator[str]:
    """The text column of each row of a data set, blank ones left out.

    Raises `CorpusError` when there is no such column, or it holds something else.
    """
    if not _columns(rows):
        return
    rows, column = select_text(rows, where)
    for row in rows:
        if text := check_text(row[column], column, where):
            yield text


def select_text(rows: Any, where: str) -> tuple[Any, str]:
    """The rows with nothing but their text column, and its name.

    Raises `CorpusError` when there is none.
    """
    column = find_text_column(_columns(rows), where)
    return rows.select_columns([column]), column


def check_text(text: Any, column: str, where: str) -> str:
    """What a row has in its text column; "" where that is blank.

    Raises `CorpusError` when it is no text.
    """
    if text is not None and not isinstance(text, str):
        raise CorpusError(f"{where}: the column {column!r} holds {type(text).__name__}, not text: {text!r:.40}")
    return text if text and text.strip() else ""


def _columns(rows: Any) -> list[str]:
    return list(rows.features or next(iter(rows), {}))  # a stream knows its columns from the first row


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


def _read_file(path: Path, documents: DocumentKind, grain: Grain) -> Iterator[str]:
    if kind_suffix(path) in TABLE_READERS:
        return _read_table(path)
    lines = _read_lines(path)
    if documents == "lines":
        return (line.rstrip("\n") for line in lines if line.strip())
    if documents == "file":
        return filter(str.strip, ["".join(lines)])
    return _join_paragraphs(lines, grain)


def _read_table(path: Path) -> Iterator[str]:
    import datasets

    kind = TABLE_READERS[kind_suffix(path)]
    readable = _read_bytes(path) if kind == "parquet" else _decode(path)  # read through for its clear errors
    if not sum(len(piece) for piece in readable):
        return
    try:
        with quiet_datasets():
            rows: Any = datasets.load_dataset(
                kind, data_files=glob.escape(str(path)), split="train", streaming=True, **READER_OPTIONS.get(kind, {})
            )
            yield from read_texts(rows, str(path))
    except CorpusError:
        raise
    except Exception as error:  # the readers of pyarrow, pandas and datasets raise dozens of kinds
        raise CorpusError(f"{path} cannot be read as {kind}: {first_line(error)}") from error


def _join_paragraphs(lines: Iterable[str], grain: Grain) -> Iterator[str]:
    """Whole paragraphs, joined until one of them says stop, with the blank lines after it; at most the file."""
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
        stop = size >= LONGEST_DOCUMENT or (size >= grain.shortest and hash_unit(sign) < 1 / grain.one_in)
        ended = stop and bool(sign.strip())
    if "".join(document).strip():
        yield "".join(document)


def _read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, newlines as `\\n`, a byte-order mark dropped."""
    unfinished: list[str] = []  # pieces of a line that the next chunk goes on with
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    for text in _decode(path):
        *lines, rest = newlines.decode(text).split("\n")
        for line in lines:
            yield "".join((*unfinished, line, "\n"))
            unfinished.clear()
        unfinished.append(rest)
    if last := "".join((*unfinished, newlines.decode("", final=True))):
        yield last


def _decode(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the first byte that the decoder has not yet turned into text
    read = 0
    for chunk in itertools.chain(_read_bytes(path), [b""]):
        if (nul := chunk.find(b"\0")) >= 0:
            raise CorpusError(f"{path} is binary, not text: it has a NUL at byte {read + nul}")
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{path} is not UTF-8: byte {offset + error.start} is 0x{error.object[error.start]:02x}; "
                "convert it with `iconv -t utf-8`"
            ) from error
        if text:
            yield text.removeprefix("\ufeff") if offset == 0 else text
        read += len(chunk)
        offset += len(text.encode("utf-8"))


def _read_bytes(path: Path) -> Iterator[bytes]:
    """The file in chunks, unzipped, none of them empty."""
    try:
        with path.open("rb") as file:
            yield from filter(None, _UNZIP.get(path.suffix.lower(), _read_chunks)(file))
    except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
        raise CorpusError(f"{path} is damaged and cannot be unzipped: {first_line(error)}") from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error


def _read_chunks(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _unzip_gzip(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(file) as unzipped:
        yield from _read_chunks(unzipped)


def _unzip_zstandard(file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame: the library's own reader takes a file that breaks off for one that ends."""
    frame = None
    while zipped := file.read(ZIPPED_BYTES):
        while zipped:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(zipped)
            zipped = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("it breaks off")


_UNZIP = {".gz": _unzip_gzip, ".zst": _unzip_zstandard}


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
