"""Minimal pairs from files: BLiMP's JSON lines, and tables with a column for each sentence.

Each row has a good and a bad sentence, and may name its paradigm and its phenomenon, by the names
of BLiMP (Warstadt et al. 2020) or by ours. A table whose first line names neither sentence has them
in its first two columns, and a note says so. A row without a paradigm has the file's name for it.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from rung.data import toy_language
from rung.data.encoding import normalize_encoding
from rung.data.files import uncompressed_suffix
from rung.data.notes import CorpusNotes, printable_path
from rung.data.search import find_files, list_readable_files
from rung.data.tables import (
    DELIMITER_OF_SUFFIX,
    LONE_SURROGATE,
    TableFile,
    WrittenNumber,
    read_csv_rows,
    read_json_rows,
)
from rung.data.toy_probes import toy_language_probes
from rung.errors import CorpusError

PAIR_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
# The names that a column may have: of BLiMP, and of a plain table.
GOOD, BAD = ("sentence_good", "good"), ("sentence_bad", "bad")
PARADIGM, PHENOMENON = ("UID", "paradigm"), ("linguistics_term", "phenomenon")


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in little but in whether they are good."""

    good: str
    bad: str
    paradigm: str
    phenomenon: str  # "" where the row names none


@dataclass(frozen=True)
class PairSet:
    """The pairs of some files, by their phenomenon and paradigm.

    `fingerprint` is a digest of the pairs. `notes` say what reading the files decided.
    """

    name: str
    pairs: list[MinimalPair]
    fingerprint: str
    notes: list[str]

    def describe(self) -> str:
        """Describe in words how many pairs, paradigms and phenomena there are."""
        parts = [f"{len(self.pairs):,} pair{'s' * (len(self.pairs) != 1)}"]
        for name in ("paradigm", "phenomenon"):
            found = {getattr(pair, name) for pair in self.pairs} - {""}
            if len(found) > 1:
                plural = "phenomena" if name == "phenomenon" else f"{name}s"
                parts.append(f"{len(found)} {plural}")
        return f"{', '.join(parts)} of {self.name}"


def read_pairs(source: str, encoding: str | None = None) -> PairSet:
    """Read the minimal pairs of a file, or of all tables in a folder.

    The corpus `toy-language`, of any size and seed, stands for its probes.
    Raises `CorpusError` where there are none, and for a file or a row that is no pair.
    """
    notes = CorpusNotes()
    if find_probes(source):
        if encoding:
            raise CorpusError(f"--encoding is {encoding!r}, but {source} needs none: leave it out")
        probes = [MinimalPair(**row) for row in toy_language_probes()]
        return _collect(probes, toy_language.NAME, notes)
    encoding = normalize_encoding(encoding) if encoding else None
    pairs = [
        pair
        for path in _find_tables(source, notes)
        for pair in _read_file(
            TableFile(
                path=path,
                kind=uncompressed_suffix(path),
                column=None,
                encoding=encoding,
                notes=notes,
            )
        )
    ]
    return _collect(pairs, Path(source).resolve().name, notes)


def find_probes(corpus: str | Sequence[str]) -> str | None:
    """Return the name of the pairs that were made for a corpus; None where there are none."""
    sources = [corpus] if isinstance(corpus, str) else corpus
    return toy_language.NAME if toy_language.parse_name(sources[0]) else None


def _collect(pairs: list[MinimalPair], name: str, notes: CorpusNotes) -> PairSet:
    """Sort the pairs by phenomenon and paradigm, and take their fingerprint."""
    pairs.sort(key=lambda pair: (natural_key(pair.phenomenon), natural_key(pair.paradigm)))
    content = json.dumps([astuple(pair) for pair in pairs])
    fingerprint = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    return PairSet(name, pairs, fingerprint, notes.lines())


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts `distance 2` before `distance 12`."""
    return [
        (1, int(part), "") if part.isdecimal() else (0, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _find_tables(source: str, notes: CorpusNotes) -> list[Path]:
    """Find the tables that a path names; in a folder, other files are skipped with a note."""
    kinds = " ".join(PAIR_SUFFIXES)
    folder = Path(source).expanduser()
    if folder.is_dir():
        found, what = list_readable_files(folder).files, "a folder of them"
    else:
        found, what = find_files([source]).files, "these as .gz or .zst"
    tables = [path for path in found if uncompressed_suffix(path) in PAIR_SUFFIXES]
    if not tables:
        raise CorpusError(
            f"{printable_path(source)} has no minimal pairs: they stand in {kinds}, or {what}"
        )
    for path in sorted(set(found) - set(tables)):
        notes.add("skipped {count} file{s} that cannot hold pairs", printable_path(path))
    return tables


def _read_file(table: TableFile) -> Iterator[MinimalPair]:
    """Yield the pairs of a file; note its equal ones, and raise `CorpusError` where it has none."""
    count = 0
    read = _read_delimited if table.kind in DELIMITER_OF_SUFFIX else _read_json
    for count, pair in enumerate(read(table), 1):  # noqa: B007  # used after the loop
        if pair.good == pair.bad:
            table.notes.add("{count} pair{s} of equal sentences, which count as ties", table.where)
        yield pair
    if not count:
        raise CorpusError(
            f"{table.where} has no minimal pairs: each row must have a good and a bad sentence"
        )


def _read_delimited(table: TableFile) -> Iterator[MinimalPair]:
    rows = read_csv_rows(table)
    _, columns = next(rows, (0, []))
    if not columns:
        return
    if len(columns) < 2:
        raise CorpusError(
            f"{table.where} has one column ({columns[0]:.40}): a pair has two sentences, in the "
            f"columns good and bad{_suggest_delimiter(columns[0], table.kind)}"
        )
    named = _find_columns(columns, table.where)
    if not named:
        named = columns[0], columns[1], *_find_names(columns[2:])
        table.notes.add(
            f"no columns called good and bad: {columns[0]!r:.40} and {columns[1]!r:.40} of the "
            "first line are read as these",
            table.where,
        )
    for line, row in rows:
        values = dict(zip(columns, row, strict=True))
        yield _make_pair(values, named, f"{table.where}, line {line}", table)


def _suggest_delimiter(header: str, kind: str) -> str:
    other = next((s for s, d in DELIMITER_OF_SUFFIX.items() if d in header and s != kind), None)
    return f"; if a {'tab' if other == '.tsv' else 'comma'} parts them, name it {other}" * bool(
        other
    )


def _read_json(table: TableFile) -> Iterator[MinimalPair]:
    for unit, number, row in read_json_rows(table):
        where = f"{table.where}, {unit} {number}"
        if not isinstance(row, dict):
            raise CorpusError(
                f"{where}: must be an object with the keys {GOOD[0]} and {BAD[0]}, or good and bad"
            )
        named = _find_columns(list(row), where)
        if not named:
            keys = ", ".join(f"{key:.40}" for key in list(row)[:8]) or "none"
            raise CorpusError(
                f"{where}: no minimal pair: the keys {GOOD[0]} and {BAD[0]}, or good and bad, are "
                f"needed, and there is {keys}"
            )
        yield _make_pair(row, named, where, table)


Columns = tuple[str, str, str | None, str | None]


def _find_columns(columns: Sequence[str], where: str) -> Columns | None:
    """Return the columns of good, bad, paradigm and phenomenon; None without the sentences."""
    twice = next((name for name in (*GOOD, *BAD) if columns.count(name) > 1), None)
    if twice:
        raise CorpusError(f"{where} has several columns called {twice!r}: rename all but one")
    good, bad = (next((n for n in names if n in columns), None) for names in (GOOD, BAD))
    if bool(good) != bool(bad):
        raise CorpusError(
            f"{where} has a column {(good or bad)!r} but none called "
            f"{' or '.join(BAD if good else GOOD)}: a pair has both"
        )
    return (good, bad, *_find_names(columns)) if good and bad else None


def _find_names(columns: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the columns of the paradigm and of the phenomenon, each None where there is none."""
    paradigm, phenomenon = (
        next((name for name in names if name in columns), None) for names in (PARADIGM, PHENOMENON)
    )
    return paradigm, phenomenon


def _make_pair(row: dict[str, Any], columns: Columns, where: str, table: TableFile) -> MinimalPair:
    good, bad = (_check_sentence(row[name], name, where) for name in columns[:2])
    for name in columns[:2]:
        if isinstance(row[name], WrittenNumber):
            table.notes.add(f"{{count}} number{{s}} in column {name!r} read as digits", table.where)
    paradigm, phenomenon = (
        str(row.get(name) or "").strip() if name else "" for name in columns[2:]
    )
    return MinimalPair(good, bad, paradigm or table.path.name.split(".")[0], phenomenon)


def _check_sentence(value: Any, column: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise CorpusError(
            f"{where}: the column {column!r} holds {type(value).__name__}, not a sentence: "
            f"{value!r:.40}"
        )
    if not value or not value.strip():
        raise CorpusError(f"{where}: no sentence in the column {column!r}: a pair has two")
    if not value.isascii() and LONE_SURROGATE.search(value):
        raise CorpusError(
            f"{where}: the column {column!r} holds half a character (a lone surrogate), which is "
            "not text"
        )
    return str(value)
