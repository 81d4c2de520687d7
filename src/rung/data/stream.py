"""Data sets of the Hub read as they arrive: the training text is never stored, only its beginning.

`stream:ORG/NAME[:CONFIG][@10GB]`. The beginning is what tokenizers are trained on and, where the
data set names no held-out splits, what these are cut from; held-out documents further on are passed
over, so that none is trained on.
"""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rung.data import files, sources
from rung.errors import CorpusError

BEGINNING = 1 << 26  # bytes of text that are stored, of the training rows
HELD_OUT_BYTES = 1 << 24  # of each held-out split that the data set names
READ_AT_ONCE = 1 << 16  # characters
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LIMIT = re.compile(r"(.*)@(\d+(?:\.\d+)?)([KMGT]B)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A data set's training rows as they arrive, the first `limit` bytes of their text; `key` says
    which they are.

    A document is trained on when its place is `train_from` or more: those below are held out.
    """

    source: str
    key: str
    rows: Any
    held_out_rows: dict[str, Any] = field(default_factory=dict)
    column: str | None = None
    limit: float = math.inf
    train_from: float = 0.0

    def read(
        self, state: dict[str, Any] | None = None
    ) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """The training documents after `state` (None: all), a few at a time, each time with the
        state after them.

        Raises `CorpusError` when the connection breaks.
        """
        own = copy.deepcopy(self.rows)  # where it is, is kept in it
        rows, column = files.select_text(own, self.source, self.column)
        if state:
            rows.load_state_dict(state["rows"])
        size, batch, read = (state or {}).get("bytes", 0), [], 0
        if size >= self.limit:
            return
        try:
            for row in rows:
                text = files.check_text(row[column], column, self.source)
                read += len(text)
                if text and files.hash_to_unit_interval(text) >= self.train_from:
                    batch.append(text)
                    size += len(text.encode())
                if read >= READ_AT_ONCE or size >= self.limit:
                    yield batch, {"rows": rows.state_dict(), "bytes": size}
                    batch, read = [], 0
                    if size >= self.limit:
                        return
        except CorpusError:
            raise
        except (
            Exception
        ) as error:  # the Hub client, the file system and the readers have each their own kinds
            raise CorpusError(
                f"{self.source} broke off after {size:,} bytes of text "
                f"({files.first_line(error)}); what was read is "
                "kept as tokens: the same command goes on from there"
            ) from error
        yield batch, {"rows": rows.state_dict(), "bytes": size}

    def read_beginning(self) -> Iterator[tuple[str, str]]:
        """The first training rows' documents, in no group, before any is held out."""
        return self._read_first(self.rows, min(BEGINNING, self.limit))

    def read_held_out(self, split: str) -> Iterator[tuple[str, str]]:
        """The first documents of a held-out split that the data set names."""
        return self._read_first(self.held_out_rows[split], HELD_OUT_BYTES)

    def _read_first(self, rows: Any, limit: float) -> Iterator[tuple[str, str]]:
        size = 0
        try:
            for text in files.read_texts(rows, self.source, self.column):
                yield text, ""
                size += len(text.encode())
                if size >= limit:
                    return
        except CorpusError:
            raise
        except Exception as error:
            why = files.first_line(error)
            raise CorpusError(
                f"{self.source} broke off at its beginning ({why}): try again"
            ) from error


def open_stream(source: str, column: str | None = None) -> Stream:
    """The stream that `stream:ORG/NAME[:CONFIG][@10GB]` names, and its text column where it is
    named.

    Raises `CorpusError` when it cannot be had.
    """
    name, limit = source.removeprefix("stream:"), math.inf
    if match := LIMIT.fullmatch(name):
        name, limit = match[1], float(match[2]) * UNITS[match[3].upper()]
    path, config = sources.parse_hub_name(name, "stream:")
    revision = sources.find_revision(path)
    rows = sources.load_hub_splits(path, config, sources.Streaming(revision))
    train = rows.pop("train")
    key = f"{revision} {config} {limit}{f' {column}' if column else ''}"
    return Stream(
        source=source, key=key, rows=train, held_out_rows=rows, limit=limit, column=column
    )
