"""Count n-grams with DuckDB, which spills to disk, or with Spark, which runs on a cluster.

The text becomes a table with a row for every position, whose columns are the tokens from there on.
The n-grams of an order are one group-by of it, the same ibis expression for both engines. Its
sorted result becomes a level of the trie part by part, in files mapped into memory, so that no step
holds a whole order.
"""

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from rung.device import count_cores
from rung.errors import RunError, first_line
from rung.models.ngram.checkpoints import OrderCheckpoints
from rung.models.ngram.counting import CountFunction, TrieLevels, count_ngrams, unigram_level
from rung.models.ngram.counting_settings import CountingSettings
from rung.models.ngram.windows import IntArray, TrieLevel, pack_keys

ROWS_AT_ONCE = 2**20
Keys = NDArray[numpy.int64]  # of a level's n-grams, as `pack_keys` makes them


def choose_count_function(
    counting: CountingSettings, folder: Path, checkpoints: OrderCheckpoints | None = None
) -> CountFunction:
    """Return the function that counts as the settings say, for `NgramForCausalLM.fit`.

    It goes on from `checkpoints`. An engine writes its files into `folder`, which must be its own.
    """
    if counting.engine != "numpy":
        return IbisCounter(counting=counting, folder=folder, checkpoints=checkpoints).count
    return functools.partial(count_ngrams, checkpoints=checkpoints) if checkpoints else count_ngrams


@dataclass(frozen=True, kw_only=True)
class IbisCounter:
    """Count with DuckDB or Spark, with the engine's files in `folder`.

    For a cluster it must be a folder that all its machines see.
    """

    counting: CountingSettings
    folder: Path
    checkpoints: OrderCheckpoints | None = None

    def count(
        self, tokens: IntArray, starts: NDArray[numpy.int64], order: int, vocab_size: int
    ) -> TrieLevels:
        """Yield what `count_ngrams` does. Raises `RunError` where the engine fails."""
        shutil.rmtree(self.folder, ignore_errors=True)  # left by a try that was killed
        try:
            with _raise_run_error(self.folder):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self.folder.mkdir(mode=0o700)
            level = unigram_level(
                _count_tokens(tokens, vocab_size), int(tokens[starts[0]]), len(starts)
            )
            yield level
            known = [pack_keys(level.parents, level.tokens, vocab_size)]  # of every order so far
            for arrays in self.checkpoints.load() if self.checkpoints else ():
                level = TrieLevel(**arrays)
                with _raise_run_error(self.folder):
                    known.append(
                        _write_keys(self.folder / f"order-{len(known) + 1}", level, vocab_size)
                    )
                yield level
            if len(known) < order:
                with _raise_run_error(self.folder):
                    _write_windows(self.folder / "windows", tokens, starts, order)
                yield from self._count_missing(level, known, order, vocab_size)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _count_missing(
        self, level: TrieLevel, known: list[Keys], order: int, vocab_size: int
    ) -> TrieLevels:
        """Yield the levels above `level`; `known` are the keys of it and of all below."""
        with _connect(self.counting, self.folder) as connection:
            windows = self.folder / "windows"
            table = connection.read_parquet(
                windows if self.counting.engine == "spark" else windows / "*.parquet"
            )
            for size in range(len(known) + 1, order + 1):
                found = self.folder / f"order-{size}"
                _run(connection, _count_expression(table, size), found, self.counting)
                if _count_rows(found) == 0:
                    return
                with _raise_run_error(self.folder):
                    level, keys = _read_level(found, level, known, vocab_size)
                known.append(keys)
                if self.checkpoints:
                    self.checkpoints.save(size, vars(level))
                yield level


@contextmanager
def _raise_run_error(folder: Path) -> Iterator[None]:
    """Raise `RunError` where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder} could not be written to ({error}): make room there, or name another place "
            "with TMPDIR or --set counting.folder"
        ) from error


def _count_expression(table: Any, size: int) -> Any:
    """The query for the n-grams of one order, sorted, with their counts."""
    columns = [f"token_{i}" for i in range(1, size + 1)]
    complete = table.filter(table[columns[-1]] >= 0)
    return complete.group_by(columns).agg(count=complete.count()).order_by(columns)


def _count_tokens(tokens: IntArray, vocab_size: int) -> NDArray[numpy.int64]:
    counts = numpy.zeros(vocab_size, dtype=numpy.int64)
    for first in range(0, len(tokens), ROWS_AT_ONCE):
        counts += numpy.bincount(tokens[first : first + ROWS_AT_ONCE], minlength=vocab_size)
    return counts


def _write_windows(
    folder: Path, tokens: IntArray, starts: NDArray[numpy.int64], order: int
) -> None:
    """Write a row for every position: its token and the `order` - 1 next, -1 past the document."""
    folder.mkdir()
    ends = numpy.append(starts[1:], len(tokens))
    schema = pyarrow.schema([(f"token_{i}", pyarrow.int32()) for i in range(1, order + 1)])
    for number, first in enumerate(range(0, len(tokens), ROWS_AT_ONCE)):
        piece = tokens[first : first + ROWS_AT_ONCE + order - 1].astype(numpy.int32)
        at = numpy.arange(first, min(first + ROWS_AT_ONCE, len(tokens)))
        # Tokens until the end of the document.
        left = ends[numpy.searchsorted(starts, at, side="right") - 1] - at
        piece = numpy.append(piece, numpy.zeros(order - 1, dtype=numpy.int32))
        columns = [
            numpy.where(left > i, piece[i : i + len(at)], -1).astype(numpy.int32)
            for i in range(order)
        ]
        table = pyarrow.table(columns, schema=schema)
        parquet.write_table(table, folder / f"{number:06}.parquet", compression="zstd")


@contextmanager
def _connect(counting: CountingSettings, scratch: Path) -> Iterator[Any]:
    """Open an ibis connection. A Spark session that it starts is stopped at the end."""
    import ibis

    size = counting.engine_bytes
    if counting.engine == "duckdb":
        settings = {"memory_limit": f"{size}B", "temp_directory": str(scratch / "spilled")}
        connection = ibis.duckdb.connect(
            **settings, threads=count_cores(), preserve_insertion_order=False
        )
        yield connection
        connection.disconnect()  # to free its memory
        return
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    before = SparkSession.getActiveSession()
    builder = SparkSession.builder.appName("rung").config("spark.driver.memory", f"{size >> 20}m")
    try:
        session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    except PySparkException as error:
        raise RunError(
            f"Spark could not be started ({error}): it needs Java 17, and JAVA_HOME to say where"
        ) from error
    master = session.sparkContext.master or ""
    if not master.startswith("local") and counting.folder is None:
        raise RunError(
            f"Spark counts on {master}: name a folder that all its machines see, "
            "as in --set counting.folder=/shared/scratch"
        )
    if before is None:
        session.sparkContext.setLogLevel("ERROR")
    try:
        yield ibis.pyspark.connect(session)
    finally:
        if before is None:
            session.stop()


def _run(connection: Any, expression: Any, folder: Path, counting: CountingSettings) -> None:
    """Write the result of a query as Parquet files, sorted by their names."""
    try:
        if counting.engine == "duckdb":
            folder.mkdir()
            connection.to_parquet(expression, folder / "all.parquet")
        else:
            connection.to_parquet_dir(expression, folder)
    except Exception as error:  # each engine raises its own types
        if "interrupted" in str(error).lower():  # DuckDB's word for Ctrl-C
            raise KeyboardInterrupt from error
        line = first_line(error)
        more = -(-2 * max(counting.memory_bytes, counting.min_memory_bytes()) // 10**9)
        raise RunError(
            f"{counting.engine} could not count ({line}): give it more memory, as in "
            f"--set counting.memory={more}GB, or make room in {folder.parent}"
        ) from error


def _files(folder: Path) -> list[parquet.ParquetFile]:
    return [parquet.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]


def _count_rows(folder: Path) -> int:
    return sum(file.metadata.num_rows for file in _files(folder))


def _read_level(
    folder: Path, below: TrieLevel, known: list[Keys], vocab_size: int
) -> tuple[TrieLevel, Keys]:
    """Read the level above `below`, and its keys, from the sorted n-grams in `folder`.

    `known` are the keys of all levels below.
    """
    rows, whole = _count_rows(folder), numpy.int32 if len(below) < 2**31 else numpy.int64
    level = TrieLevel(
        tokens=_map(folder, "tokens", rows, numpy.int32),
        parents=_map(folder, "parents", rows, whole),
        counts=_map(folder, "counts", rows, numpy.int64),
        suffixes=_map(folder, "suffixes", rows, whole),
        opens=_map(folder, "opens", rows, numpy.bool_),
    )
    keys = _map(folder, "keys", rows, numpy.int64)
    at = 0
    for file in _files(folder):
        for batch in file.iter_batches(ROWS_AT_ONCE):
            *history, last, counts = (column.to_numpy() for column in batch.columns)
            piece = slice(at, at + len(counts))
            parents = _find_rows(history, known, vocab_size)
            level.tokens[piece], level.parents[piece], level.counts[piece] = last, parents, counts
            level.opens[piece] = below.opens[parents]
            level.suffixes[piece] = _find(known[-1], below.suffixes[parents], last, vocab_size)
            keys[piece] = pack_keys(parents, last, vocab_size)
            at += len(counts)
    return level, keys


def _write_keys(folder: Path, level: TrieLevel, vocab_size: int) -> Keys:
    folder.mkdir()
    keys = _map(folder, "keys", len(level), numpy.int64)
    for first in range(0, len(level), ROWS_AT_ONCE):
        piece = slice(first, first + ROWS_AT_ONCE)
        keys[piece] = pack_keys(level.parents[piece], level.tokens[piece], vocab_size)
    return keys


def _find_rows(columns: list[IntArray], keys: list[Keys], vocab_size: int) -> IntArray:
    """Find the row of each n-gram, whose tokens are these columns.

    Neighbours are often the same, and are then looked up once.
    """
    is_new = numpy.zeros(len(columns[0]), dtype=bool)
    is_new[:1] = True
    for column in columns:
        is_new[1:] |= column[1:] != column[:-1]
    rows: IntArray = columns[0][is_new]
    for column, known in zip(columns[1:], keys[1:], strict=False):
        rows = _find(known, rows, column[is_new], vocab_size)
    return rows[numpy.cumsum(is_new) - 1]


def _find(keys: Keys, parents: IntArray, tokens: IntArray, vocab_size: int) -> IntArray:
    return numpy.searchsorted(keys, pack_keys(parents, tokens, vocab_size))


def _map(folder: Path, name: str, size: int, kind: type) -> NDArray[Any]:
    """Map an array in a file into memory.

    Its disk space is taken at once: writing to a mapped file on a full disk kills the process.
    """
    path = folder / f"{name}.bin"
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size * numpy.dtype(kind).itemsize)
    return numpy.memmap(path, dtype=kind, mode="r+", shape=(size,))
