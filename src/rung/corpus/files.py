"""Documents from files: plain text, and tables with a text column, plain or compressed.

Nothing here holds a whole corpus: text streams through in chunks, and tables are read by `datasets`.
"""

import codecs
import glob
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, get_args

import fsspec

from rung.errors import CorpusError

DocumentKind = Literal["lines", "paragraphs", "file"]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
TABLE_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSED_SUFFIXES = (".gz", ".zst")
TEXT_COLUMNS = ("text", "content", "document", "page")

CHUNK_BYTES = 1 << 20
# A document of joined paragraphs ends where a paragraph's own hash says so, not where a counter
# does: text added anywhere moves only the boundaries next to it.
SHORTEST_DOCUMENT = 1_000
LONGEST_DOCUMENT = 16_000
ONE_IN = 8


def find_files(source: str) -> list[Path]:
    """The files that a path, a folder or a glob names, in a fixed order.

    Raises `CorpusError` when there are none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and _is_readable_kind(p)]
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
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
    return sorted(found)


def kind_suffix(path: Path) -> str:
    """The suffix that says how to read a file, looking through `.gz` and `.zst`."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_documents(files: Iterable[Path], documents: DocumentKind) -> Iterator[str]:
    """Every document of `files`, in order.

    Raises `CorpusError` for a file that is empty, binary, not UTF-8, not permitted, or has no text column.
    """
    if documents not in get_args(DocumentKind):
        raise CorpusError(f"--documents {documents!r}: choose from {', '.join(get_args(DocumentKind))}")
    for path in files:
        if kind_suffix(path) in TABLE_READERS:
            yield from _read_table(path)
        else:
            yield from _split_text(path, documents)


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


def _is_readable_kind(path: Path) -> bool:
    return kind_suffix(path) in (*TEXT_SUFFIXES, *TABLE_READERS)


def _read_table(path: Path) -> Iterator[str]:
    import datasets

    kind = TABLE_READERS[kind_suffix(path)]
    with _open(path) as stream:
        if not stream.read(1):
            raise CorpusError(f"{path} is empty")
    try:
        rows: Any = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
        column = find_text_column(list(rows.features or next(iter(rows))), str(path))
        for row in rows.select_columns([column]):
            if isinstance(row[column], str) and row[column].strip():
                yield row[column]
    except CorpusError:
        raise
    except Exception as error:  # the readers of pyarrow, pandas and datasets raise dozens of kinds
        raise CorpusError(f"{path} cannot be read as {kind}: {_first_line(error)}") from error


def _split_text(path: Path, documents: DocumentKind) -> Iterator[str]:
    lines = _read_lines(path)
    if documents == "lines":
        yield from (line.rstrip("\n") for line in lines if line.strip())
    elif documents == "file":
        text = "".join(lines)
        if text.strip():
            yield text
    else:
        yield from _join_paragraphs(lines)


def _join_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Whole paragraphs, joined until one of them says stop; at most the file."""
    document: list[str] = []
    size = 0
    paragraph_start = 0
    for line in lines:
        document.append(line)
        size += len(line)
        if line.strip():
            continue
        paragraph = "".join(document[paragraph_start:])
        paragraph_start = len(document)
        ends_here = size >= SHORTEST_DOCUMENT and hash_unit(paragraph) < 1 / ONE_IN
        if ends_here or size >= LONGEST_DOCUMENT:
            yield "".join(document)
            document, size, paragraph_start = [], 0, 0
    if "".join(document).strip():
        yield "".join(document)


def _read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, newlines as `\\n`, a byte-order mark dropped."""
    rest = ""
    empty = True
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    for text in _decode(path):
        empty = False
        lines = (rest + newlines.decode(text)).split("\n")
        rest = lines.pop()
        yield from (line + "\n" for line in lines)
    if empty:
        raise CorpusError(f"{path} is empty")
    rest += newlines.decode("", final=True)
    if rest:
        yield rest


def _decode(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the first byte that the decoder has not yet turned into text
    with _open(path) as stream:
        while True:
            chunk = stream.read(CHUNK_BYTES)
            if (nul := chunk.find(b"\0")) >= 0:
                raise CorpusError(f"{path} is binary, not text: it has a NUL at byte {offset + nul}")
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path} is not UTF-8: byte {offset + error.start} is 0x{error.object[error.start]:02x}; "
                    "convert it with `iconv -t utf-8`"
                ) from error
            if not chunk:
                return
            if text:
                yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(text.encode("utf-8"))


def _open(path: Path) -> IO[bytes]:
    try:
        stream: IO[bytes] = fsspec.open(str(path), "rb", compression=_compression(path)).open()
        stream.read(0)
        return stream
    except OSError as error:
        raise CorpusError(f"{path} cannot be opened: {error.strerror or _first_line(error)}") from error


def _compression(path: Path) -> str | None:
    return {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
