"""Read a file's bytes as text: decompress, decode and split into lines, one chunk at a time.

The encoding is UTF-8, or the one given, or that of the byte-order mark; none is guessed.
"""

import codecs
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from rung.data.notes import CorpusNotes, printable_path
from rung.errors import CorpusError, did_you_mean, first_line

CHUNK_BYTES = 1 << 20
ZSTD_CHUNK_BYTES = 1 << 14  # compressed ones, which decompress to many times as many
COMPRESSED_SUFFIXES = (".gz", ".zst")
# The longer marks first: that of UTF-16 is the beginning of that of UTF-32.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
NOT_TEXT = {  # by the first bytes of a file
    b"%PDF-": "a PDF; write its text to a .txt file, as `pdftotext` does",
    b"PK\3\4": "a zip archive (.docx, .xlsx, .epub and .odt are some); unzip it, or save its text "
    "as .txt",
    b"BZh91AY": "compressed by bzip2; unzip it, or compress it with gzip",
    b"\xfd7zXZ": "compressed by xz; unzip it, or compress it with gzip",
    b"\x1f\x8b": "compressed by gzip; give it a name that ends in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard; give it a name that ends in .zst",
    b"PAR1\x15": "a Parquet table; give it a name that ends in .parquet",
}
# In these a byte of zero is part of a character.
WIDE_ENCODINGS = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
USUAL_ENCODINGS = (
    "utf-8",
    "utf-16",
    *WIDE_ENCODINGS,
    "latin-1",
    "cp1252",
    "iso8859-15",
    "gb18030",
    "shift_jis",
    "big5",
    "koi8-r",
)


def normalize_encoding(name: str) -> str:
    """Return the encoding's usual name.

    Raises `CorpusError` for one that Python does not know.
    """
    try:
        found = codecs.lookup(name)
        found.incrementaldecoder().decode(b"")  # None where it only works on the whole
    except (LookupError, TypeError, ValueError):
        found = None
    if found is None or not getattr(found, "_is_text_encoding", True):
        raise CorpusError(f"unknown encoding {name!r}: {did_you_mean(name, USUAL_ENCODINGS)}")
    return "utf-8" if found.name == "utf-8-sig" else found.name


def read_lines(path: Path, encoding: str | None, notes: CorpusNotes) -> Iterator[str]:
    """Yield the lines of a file; `\\n`, `\\r\\n` and `\\r`, and nothing else, become `\\n`."""
    unfinished: list[str] = []  # pieces of a line that the next chunk continues
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    returns = pairs = 0
    last = ""
    for text in decode_file(path, encoding, notes):
        returns += text.count("\r")
        pairs += text.count("\r\n") + (last == "\r" and text[0] == "\n")
        last = text[-1]
        *lines, rest = newlines.decode(text).split("\n")
        if lines:
            lines[0] = "".join((*unfinished, lines[0]))
            unfinished.clear()
        for line in lines:
            yield line + "\n"
        unfinished.append(rest)
    if end := "".join((*unfinished, newlines.decode("", final=True))):
        yield end
    if pairs:
        notes.add(r"{count} line end{s} \r\n read as \n", printable_path(path), pairs)
    if returns > pairs:
        notes.add(r"{count} lone \r read as line end{s}", printable_path(path), returns - pairs)


def split_keeping_ends(chunks: Iterator[str]) -> Iterator[str]:
    """Yield lines with their own line ends, which a quoted value must keep."""
    unfinished: list[str] = []
    for chunk in chunks:
        if unfinished and unfinished[-1].endswith("\r"):  # perhaps half of a line end
            chunk = unfinished.pop() + chunk
        *lines, last = io.StringIO(chunk, newline="")
        for line in lines:
            yield "".join((*unfinished, line))
            unfinished.clear()
        unfinished.append(last)
        if last.endswith("\n"):
            yield "".join(unfinished)
            unfinished.clear()
    if unfinished:
        yield "".join(unfinished)


def decode_file(path: Path, encoding: str | None, notes: CorpusNotes) -> Iterator[str]:
    """Yield the text of a file in non-empty chunks, without its byte-order mark.

    Raises `CorpusError` for a file that is binary, in another encoding, damaged, or not readable.
    """
    shown = printable_path(path)
    chunks = read_decompressed(path)
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= 4:
            break
    if kind := next((kind for sign, kind in NOT_TEXT.items() if start.startswith(sign)), None):
        raise CorpusError(f"{shown} is not text: it is {kind}")
    codec, read = _find_codec(start, encoding, shown, notes)
    decoder = codecs.getincrementaldecoder(codec)()
    for chunk in itertools.chain(filter(None, [start[read:]]), chunks, [b""]):
        # The decoder holds back the beginning of a character.
        before = read - len(decoder.getstate()[0])
        if codec not in WIDE_ENCODINGS and (nul := chunk.find(b"\0")) >= 0:
            raise CorpusError(_explain_nul(shown, read + nul, start))
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            why = _explain_bad_byte(
                shown, before, error, encoding or (codec if codec in WIDE_ENCODINGS else None)
            )
            raise CorpusError(why) from error
        if "\0" in text:
            at = before + len(text[: text.index("\0")].encode(codec))
            raise CorpusError(f"{shown} is binary, not text: it has a NUL at byte {at}")
        if text:
            yield text
        read += len(chunk)


def _find_codec(start: bytes, named: str | None, where: str, notes: CorpusNotes) -> tuple[str, int]:
    """Return the codec, and the length of the byte-order mark, which decides where there is one."""
    for mark, codec in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            if codec != (named or "utf-8"):
                notes.add(f"read as {codec}, as the byte-order mark says", where)
            return codec, len(mark)
    if named in ("utf-16", "utf-32"):
        raise CorpusError(
            f"{where} has no byte-order mark: say which {named} it is, --encoding {named}-le or "
            f"--encoding {named}-be"
        )
    return named or "utf-8", 0


def _explain_nul(where: str, at: int, start: bytes) -> str:
    """Return the error, with UTF-16 or UTF-32 as advice where that gives text with some ASCII."""
    message = f"{where} is binary, not text: it has a NUL at byte {at:,}"
    start = start[: min(400, len(start) // 4 * 4)]
    # ASCII with a stray zero would read as Chinese.
    if start.count(0) <= len(start) / 10 and start.isascii():
        return message
    for codec in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        letters = start.decode(codec, "replace")[:-1]  # the last may be half of one
        is_text = all(
            (letter.isprintable() and letter != "\ufffd") or letter.isspace() for letter in letters
        )
        if is_text and any(map(str.isascii, letters)):
            return f"{message}; if it is {codec[:6].upper()}, say so with --encoding {codec}"
    return message


def _explain_bad_byte(where: str, before: int, error: UnicodeDecodeError, named: str | None) -> str:
    at, byte = before + error.start, error.object[error.start]
    message = f"{where} is not {named or 'UTF-8'}: byte {at:,} is 0x{byte:02x}"
    if named in WIDE_ENCODINGS and error.reason in ("truncated data", "unexpected end of data"):
        return f"{where} is damaged: it breaks off within a character of {named}, at byte {at:,}"
    if named:
        return f"{message}; name its own encoding, as in --encoding latin-1"
    beyond_latin = any(0x80 <= other < 0xA0 for other in error.object)
    like = ("cp1252", "cp1252") if beyond_latin else ("latin-1", "latin1")
    return (
        f"{message}; name its encoding, as in --encoding {like[0]} (gb18030, shift_jis and koi8-r "
        f"are others), or convert it with `iconv -f {like[1]} -t utf-8`"
    )


def read_decompressed(path: Path) -> Iterator[bytes]:
    """Yield the file's decompressed bytes in non-empty chunks."""
    try:
        with path.open("rb") as file:
            yield from filter(None, _DECOMPRESS.get(path.suffix.lower(), _read_chunks)(file))
    except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
        raise CorpusError(
            f"{printable_path(path)} is damaged and cannot be decompressed: {first_line(error)}"
        ) from error
    except OSError as error:
        raise CorpusError(
            f"{printable_path(path)} cannot be read: {error.strerror or first_line(error)}"
        ) from error


def _read_chunks(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _decompress_gzip(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(file) as decompressed:
        yield from _read_chunks(decompressed)


def _decompress_zstandard(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress frame by frame: the library's own reader accepts a file that breaks off."""
    frame = None
    while compressed := file.read(ZSTD_CHUNK_BYTES):
        while compressed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(compressed)
            compressed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("it breaks off")


_DECOMPRESS = {".gz": _decompress_gzip, ".zst": _decompress_zstandard}
