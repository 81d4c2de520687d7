"""Stream data sets of the Hub: the training text is read as it arrives, and never stored whole.

`stream:ORG/NAME[:CONFIG][@10GB]`. Only the beginning is stored. Tokenizers are trained on it, and
held-out splits are cut from it where the data set has none. Later documents whose place is that of
a held-out one are skipped, so that no copy of one is trained on.
"""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rung.data import files, sources
from rung.data.tables import check_text
from rung.errors import CorpusError, first_line

BEGINNING_BYTES = 1 << 26  # bytes of text that are stored, of the training rows
HELD_OUT_BYTES = 1 << 24  # of each held-out split that the data set names
STREAM_BATCH_CHARACTERS = 1 << 16  # characters
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LIMIT_SUFFIX = re.compile(r"(.*)@(\d+(?:\.\d+)?)([KMGT]B)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A data set's training rows as they arrive, up to `limit` bytes of their text.

    `key` changes when they do. A document is trained on when its place is `train_from` or more;
    those below are held out.
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
        """Yield batches of the training documents after `state`, each with the state after it.

        None is the state before the first document. Raises `CorpusError` when the connection
        breaks.
        """
        own = copy.deepcopy(self.rows)  # the rows keep their position themselves
        rows, column = files.select_text_column(own, self.source, self.column)
        if state:
            rows.load_state_dict(state["rows"])
        size, batch, read = (state or {}).get("bytes", 0), [], 0
        if size >= self.limit:
            return
        try:
            for row in rows:
                text = check_text(row[column], column, self.source)
                read += len(text)
                if text and files.hash_to_unit_interval(text) >= self.train_from:
                    batch.append(text)
                    size += len(text.encode())
                if read >= STREAM_BATCH_CHARACTERS or size >= self.limit:
                    yield batch, {"rows": rows.state_dict(), "bytes": size}
                    batch, read = [], 0
                    if size >= self.limit:
                        return
        except CorpusError:
            raise
        # The Hub client, the file system and the readers each have errors of their own.
        except Exception as error:
            raise CorpusError(
                f"{self.source} broke off after {size:,} bytes of text ({first_line(error)}); what "
                "was read is kept as tokens: the same command goes on from there"
            ) from error
        yield batch, {"rows": rows.state_dict(), "bytes": size}

    def read_beginning(self) -> Iterator[tuple[str, str]]:
        """Yield (document, "") of the first training rows, before any is held out."""
        return self._read_first(self.rows, min(BEGINNING_BYTES, self.limit))

    def read_held_out(self, split: str) -> Iterator[tuple[str, str]]:
        """Yield (document, "") of the first rows of a held-out split."""
        return self._read_first(self.held_out_rows[split], HELD_OUT_BYTES)

    def _read_first(self, rows: Any, limit: float) -> Iterator[tuple[str, str]]:
        size = 0
        try:
            for text in files.read_text_column(rows, self.source, self.column):
                yield text, ""
                size += len(text.encode())
                if size >= limit:
                    return
        except CorpusError:
            raise
        except Exception as error:
            raise CorpusError(
                f"{self.source} broke off at its beginning ({first_line(error)}): try again"
            ) from error


def open_stream(source: str, column: str | None = None) -> Stream:
    """Open the stream that `stream:ORG/NAME[:CONFIG][@10GB]` names.

    `column` is its text column, found by its name where it is None. Raises `CorpusError` when the
    data set cannot be reached.
    """
    name, limit = source.removeprefix("stream:"), math.inf
    if match := LIMIT_SUFFIX.fullmatch(name):
        name, limit = match[1], float(match[2]) * UNITS[match[3].upper()]
    path, config = sources.parse_hub_name(name, "stream:")
    revision = sources.find_revision(path)
    rows = sources.load_hub_splits(path, config, revision)
    train = rows.pop("train")
    key = f"{revision} {config} {limit}{f' {column}' if column else ''}"
    return Stream(
        source=source, key=key, rows=train, held_out_rows=rows, limit=limit, column=column
    )
