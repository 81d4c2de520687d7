"""Read the text column of CSV, JSON lines and Parquet files, row by row.

The other columns may hold anything. Values are the strings in the file: `007` keeps its zeros. A
row that does not fit the table is an error that names its line.
"""

import csv
import functools
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.data.encoding import (
    COMPRESSED_SUFFIXES,
    decode_file,
    read_decompressed,
    split_keeping_ends,
)
from rung.data.notes import CorpusNotes, printable_path
from rung.errors import CorpusError, first_line

TEXT_COLUMNS = ("text", "content", "document", "page")
DELIMITER_OF_SUFFIX = {".csv": ",", ".tsv": "\t"}
DELIMITER_NAMES = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'"}
MAX_SHOWN_COLUMNS = 8
PARQUET_BATCH_ROWS = 256
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class NoTextColumnError(CorpusError):
    """A table has no column of the given name, or of those that usually hold text."""


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A table in a file, with its text column and encoding where these were given."""

    path: Path
    kind: str  # a suffix: .csv, .tsv, .json, .jsonl, .ndjson or .parquet
    column: str | None
    encoding: str | None
    notes: CorpusNotes

    @functools.cached_property
    def where(self) -> str:
        """The printable path."""
        return printable_path(self.path)


def read_table(table: TableFile) -> Iterator[str]:
    """Yield the text of each row that has one.

    Raises `CorpusError` for a table that is damaged or has a row that does not fit, and
    `NoTextColumnError` for one without a text column.
    """
    without: Counter[str] = Counter()
    for column, text in _READERS[table.kind](table):
        if text and not text.isspace():
            yield text
        else:
            without[column] += 1
    for column, count in without.items():
        note_without_text(count, column, table.where, table.notes)


def read_column(table: TableFile) -> Iterator[str]:
    """Yield the text of each row, "" where it has none. Raises the errors of `read_table`."""
    yield from (text or "" for _, text in _READERS[table.kind](table))


def note_without_text(count: int, column: str, where: str, notes: CorpusNotes) -> None:
    """Note how many rows are skipped for want of text; `column` is "" for rows that are a text."""
    if count:
        notes.add(f"skipped {{count}} row{{s}} without text{_in_column(column)}", where, count)


def _in_column(column: str) -> str:
    return f" in column {column!r}" if column else ""


def find_text_column(columns: Sequence[str], where: str, column: str | None = None) -> str:
    """Return the column that holds the text: `column`, or the first of `TEXT_COLUMNS`.

    Raises `NoTextColumnError`, with the columns there are, when there is none, and `CorpusError`
    when there are two of that name.
    """
    wanted = next(
        (name for name in ((column,) if column else TEXT_COLUMNS) if name in columns), None
    )
    if wanted is not None and columns.count(wanted) > 1:
        raise CorpusError(
            f"{where} has {columns.count(wanted)} columns called {wanted!r}: rename all but one"
        )
    if wanted is not None:
        return wanted
    shown = ", ".join(f"{name:.40}" for name in columns[:MAX_SHOWN_COLUMNS]) or "no columns"
    more = (
        f" and {len(columns) - MAX_SHOWN_COLUMNS} more" if len(columns) > MAX_SHOWN_COLUMNS else ""
    )
    what = f"column {column!r}" if column else "text column"
    raise NoTextColumnError(
        f"{where} has no {what}: it has {shown}{more}; name the one to read with --column"
    )


def _choose_column(columns: list[str], table: TableFile) -> str:
    """Return the text column, with a note where another might have been meant."""
    chosen = find_text_column(columns, table.where, table.column)
    usual = [name for name in TEXT_COLUMNS if name in columns]
    if len(usual) > 1 and table.column is None:
        others = ", ".join(usual[1:])
        table.notes.add(
            f"column {chosen!r} is read, and not {others} (--column chooses)", table.where
        )
    return chosen


def check_text(text: Any, column: str, where: str) -> str:
    """Return a value of the text column; "" where it is blank.

    Raises `CorpusError` when it is not text.
    """
    if text is not None and not isinstance(text, str):
        shown = f"{type(text).__name__}, not text: {text!r:.40}"
        raise CorpusError(f"{where}: the column {column!r} holds {shown}; --column names another")
    if text and not text.isascii() and LONE_SURROGATE.search(text):
        raise CorpusError(
            f"{where}: the column {column!r} holds half a character (a lone surrogate), which is "
            "not text"
        )
    return text if text and text.strip() else ""


def _read_csv(table: TableFile) -> Iterator[tuple[str, str]]:
    """Yield (name of the text column, value) of each row."""
    rows = read_csv_rows(table)
    _, columns = next(rows, (0, []))
    if not columns:
        return
    place = columns.index(_find_csv_column(columns, DELIMITER_OF_SUFFIX[table.kind], table))
    for _, row in rows:
        yield columns[place], row[place]


def read_csv_rows(table: TableFile) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, values) of each row; each must be as wide as the header.

    The header comes first. Raises `CorpusError` for a table that is damaged.
    """
    csv.field_size_limit(sys.maxsize)  # for the whole process: a document may be long
    delimiter = DELIMITER_OF_SUFFIX[table.kind]
    lines = split_keeping_ends(decode_file(table.path, table.encoding, table.notes))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] = []
    begins = 1
    try:
        for row in reader:
            columns = columns or row
            if row and len(row) != len(columns):
                raise CorpusError(_explain_width(table.where, begins, len(row), columns))
            if row:
                yield begins, row
            begins = reader.line_num + 1
    except csv.Error as error:
        why = (
            "a quote is opened and not closed"
            if "unexpected end" in str(error)
            else first_line(error)
        )
        raise CorpusError(
            f"{table.where}, line {begins}: cannot be read as {table.kind[1:]}: {why}; a value "
            'with a quote in it must stand in quotes, and its own be doubled ("")'
        ) from error


def _find_csv_column(columns: list[str], delimiter: str, table: TableFile) -> str:
    try:
        return _choose_column(columns, table)
    except NoTextColumnError:
        header = delimiter.join(columns)
        wanted = {table.column} if table.column else set(TEXT_COLUMNS)
        parts = {
            d: {part.strip(' "') for part in header.split(d)}
            for d in DELIMITER_NAMES
            if d != delimiter
        }
        other = next(
            (d for d, found in parts.items() if found & wanted or (len(found) > 1 == len(columns))),
            None,
        )
        if other is None:
            raise
        raise NoTextColumnError(
            f"{table.where}: the delimiter of its columns seems to be {DELIMITER_NAMES[other]}, "
            f"not {DELIMITER_NAMES[delimiter]} as in {table.kind}: its first line is "
            f"{header!r:.60}; {_describe_remedy(other)}"
        ) from None


def _describe_remedy(delimiter: str) -> str:
    """Return how to make a table with this delimiter readable."""
    if delimiter == "\t":
        return "rename it to .tsv"
    if delimiter == ",":
        return "rename it to .csv"
    program = (
        "import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, "
        f"delimiter='{delimiter}'))"
    )
    return f'write it with commas: python3 -c "{program}" < IN.csv > OUT.csv'


def _explain_width(where: str, line: int, width: int, columns: list[str]) -> str:
    names = ", ".join(f"{name:.40}" for name in columns[:MAX_SHOWN_COLUMNS])
    return (
        f"{where}, line {line}: the row has {width} {'column' if width == 1 else 'columns'} and "
        f"the first line {len(columns)} ({names}): a value with the delimiter or a line end "
        "in it must stand in quotes"
    )


class WrittenNumber(str):
    """A number as it stands in the file."""

    __slots__ = ()


# Numbers keep their digits. NaN, which is not JSON but is often found in it, counts as no value.
_JSON = json.JSONDecoder(
    parse_int=WrittenNumber, parse_float=WrittenNumber, parse_constant=lambda name: None
)


def _read_json(table: TableFile) -> Iterator[tuple[str, str]]:
    """Yield (column, value) of JSON lines, or of one JSON value: an array of rows, or one row.

    A row may be the text itself; its column is "".
    """
    column: str | None = None
    missed: dict[str, None] = {}
    waiting = 0  # rows before the first that has a text column
    numbers = 0  # rows whose text is a number
    for unit, number, row in read_json_rows(table):
        if not isinstance(row, dict | str):
            raise CorpusError(
                f"{table.where}, {unit} {number}: must be an object, not {type(row).__name__}"
            )
        if column is None and isinstance(row, dict):
            column = _find_json_column(row, table)
            if column is None:
                missed |= dict.fromkeys(row)
                waiting += 1
                continue
        text = row if isinstance(row, str) else row.get(column)
        if not (isinstance(text, str) and text.isascii()):
            text = check_text(text, column or "text", f"{table.where}, {unit} {number}")
        numbers += isinstance(text, WrittenNumber)
        yield ("" if isinstance(row, str) else column or ""), str(text)
    if column is None and missed:
        find_text_column(list(missed), table.where, table.column)
    if numbers:
        table.notes.add(
            f"{{count}} number{{s}}{_in_column(column or '')} read as digits", table.where, numbers
        )
    yield from itertools.repeat((column or "", ""), waiting)


def read_json_rows(table: TableFile) -> Iterator[tuple[str, int, Any]]:
    """Yield ("line" or "row", its number, value) of JSON lines, or of an array, or of one value.

    Numbers are strings of their digits. Raises `CorpusError` for what is not JSON.
    """
    lines = split_keeping_ends(decode_file(table.path, table.encoding, table.notes))
    numbered = ((number, line) for number, line in enumerate(lines, 1) if not line.isspace())
    first = next(numbered, None)
    if first is None:
        return
    if _is_one_value(first[1].strip(), table):
        for number, value in _parse_one_value(first, numbered, table):
            yield "row", number, value
    else:
        for number, value in _parse_lines(first, numbered, table):
            yield "line", number, value


def _find_json_column(row: dict[str, Any], table: TableFile) -> str | None:
    try:
        return _choose_column(list(row), table)
    except NoTextColumnError:
        return None


def _is_one_value(opening: str, table: TableFile) -> bool:
    """Return whether the file is one JSON value: an array, or an object over several lines."""
    if opening[0] == "[":
        return True
    if table.kind != ".json":
        return False
    try:
        _JSON.decode(opening)
    except (ValueError, RecursionError):
        return True
    return False


def _parse_one_value(
    first: tuple[int, str], lines: Iterator[tuple[int, str]], table: TableFile
) -> Iterator[tuple[int, Any]]:
    value = _parse(first[1] + "".join(line for _, line in lines), table, 0)
    yield from enumerate(value if isinstance(value, list) else [value], 1)


def _parse_lines(
    first: tuple[int, str], lines: Iterator[tuple[int, str]], table: TableFile
) -> Iterator[tuple[int, Any]]:
    for number, line in itertools.chain([first], lines):
        yield number, _parse(line, table, number)


def _parse(text: str, table: TableFile, line: int) -> Any:
    """Return the value of a line; with `line` 0, of the whole text."""
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError as error:
        at, why = line or error.lineno, f"{error.msg.removesuffix(' at')} at column {error.colno}"
    except RecursionError:
        at, why = line or 1, "values within values, too deep to read"
    raise CorpusError(f"{table.where}, line {at}: cannot be read as json: {why}")


def _read_parquet(table: TableFile) -> Iterator[tuple[str, str]]:
    import pyarrow.parquet

    zipped = table.path.suffix.lower() in COMPRESSED_SUFFIXES
    chunks = read_decompressed(table.path)
    if not (start := next(chunks, b"")):
        return
    source: Any = io.BytesIO(b"".join((start, *chunks))) if zipped else str(table.path)
    chunks.close()  # type: ignore[attr-defined]  # a generator: it closes the file
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            if file.metadata.num_rows == 0:
                return
            columns = file.schema_arrow.names
            column = _choose_column(columns, table)
            place = columns.index(column)
            _check_type(file.schema_arrow.field(place).type, column, table)
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=[column]):
                # The batch may hold more than `column`: a name with a dot also means a field.
                for text in batch.column(column).to_pylist():
                    given = text if text is None else str(text)
                    yield column, check_text(given, column, table.where)
    except CorpusError:
        raise
    # pyarrow raises many kinds of errors, and OSError for a file that is not Parquet.
    except Exception as error:
        raise CorpusError(
            f"{table.where} cannot be read as parquet: {first_line(error)}"
        ) from error


def _check_type(kind: Any, column: str, table: TableFile) -> None:
    """Raise `CorpusError` unless the column holds text, or integers, which are read as digits."""
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if pyarrow.types.is_integer(kind):
        table.notes.add(f"column {column!r} holds {kind}: read as digits", table.where)
        return
    is_text = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    if not (any(is_kind(kind) for is_kind in is_text) or pyarrow.types.is_null(kind)):
        raise CorpusError(
            f"{table.where}: the column {column!r} holds {kind}, not text; --column names another"
        )


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
}
