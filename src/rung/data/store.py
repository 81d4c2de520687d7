"""Documents on disk: memory-mapped Arrow files, written in the memory of a few documents.

Each document is stored with its place, a number in [0, 1) from its hash, which decides its split.
What takes a pass over the text to know (its bytes, its fingerprint) is computed once and kept.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.data import files
from rung.files import make_once, read_cached_value, write_value

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
# To be raised whenever the same source is read differently; what was stored before is then unused.
STORE_LAYOUT = 7
WRITE_BUFFER_CHARACTERS = 1 << 21
READ_BATCH_BYTES = 1 << 20  # about
INDEXED_BATCH_SIZE = 16

# Gives (text, group) pairs; documents of one group go to the same split.
DocumentReader = Callable[[], Iterator[tuple[str, str]]]


def store_documents(
    read: DocumentReader, folder: Path, key: str, *, leave_out_empty: bool = False
) -> "Dataset":
    """Write the documents once, and return them as a data set with columns `text` and `place`."""
    bounds = {"all": (0.0, 1.0)}
    return store_by_place(read, folder, key, bounds, leave_out_empty=leave_out_empty)["all"]


def store_by_place(
    read: DocumentReader,
    folder: Path,
    key: str,
    bounds: dict[str, tuple[float, float]],
    *,
    leave_out_empty: bool = False,
) -> dict[str, "Dataset"]:
    """Write each document to the file of the interval in `bounds` that holds its place.

    With `leave_out_empty` a document of white space alone is not written.
    """
    import datasets

    kept = folder / _digest(key)
    with make_once(kept) as beside:
        if beside:
            documents = read()
            if leave_out_empty:
                documents = (each for each in documents if each[0].strip())
            _write(documents, beside, bounds)
    return {name: datasets.Dataset.from_file(str(kept / f"{name}.arrow")) for name in bounds}


def _write(
    documents: Iterator[tuple[str, str]], folder: Path, bounds: dict[str, tuple[float, float]]
) -> None:
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ArrowWriter(folder / f"{name}.arrow")) for name in bounds
        }
        for text, group in documents:
            place = files.hash_to_unit_interval(group or text)
            name = next(name for name, (low, high) in bounds.items() if low <= place < high)
            writers[name].write(text, place)


class ArrowWriter:
    """Write documents and their places to an Arrow file, a few megabytes at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self.schema = pyarrow.schema({"text": pyarrow.large_string(), "place": pyarrow.float64()})
        self.file = pyarrow.ipc.new_stream(str(path), self.schema)
        self.texts: list[str] = []
        self.places: list[float] = []
        self.size = 0

    def __enter__(self) -> "ArrowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self.file.close()

    def write(self, text: str, place: float) -> None:
        self.texts.append(text)
        self.places.append(place)
        self.size += len(text)
        buffered = WRITE_BUFFER_CHARACTERS
        if self.size >= buffered or len(self.texts) >= buffered // 64:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self.texts:
            columns = [
                pyarrow.array(self.texts, pyarrow.large_string()),
                pyarrow.array(self.places),
            ]
            self.file.write_batch(pyarrow.record_batch(columns, schema=self.schema))
        self.texts, self.places, self.size = [], [], 0


def read_batches(rows: "Dataset", start: int = 0) -> Iterator[list[str]]:
    """Yield the documents from number `start` on, in batches of about `READ_BATCH_BYTES`.

    Batches go by bytes because one document may be as long as a thousand others.
    """
    if rows._indices is not None:  # a selection, which is made of small corpora only
        for at in range(start, len(rows), INDEXED_BATCH_SIZE):
            yield list(rows[at : at + INDEXED_BATCH_SIZE]["text"])
        return
    for chunk in rows.data.column("text").chunks:
        size = max(1, READ_BATCH_BYTES * len(chunk) // max(1, chunk.nbytes))
        for at in range(start, len(chunk), size):
            yield chunk.slice(at, size).to_pylist()
        start = max(0, start - len(chunk))


def count_utf8_bytes(rows: "Dataset") -> int:
    return sum(len(text.encode()) for batch in read_batches(rows) for text in batch)


def compute_statistics(
    splits: dict[str, "Dataset"], folder: Path, key: str, beyond: str = ""
) -> dict[str, Any]:
    """Return the `fingerprint` of the splits and the `bytes` of each, computed once for a key.

    `beyond` names text that belongs to the corpus and is not in the splits: the rest of a stream.
    """
    kept = folder / f"{_digest(key)}-facts"
    with make_once(kept) as beside:
        if beside:
            sizes = {name: count_utf8_bytes(rows) for name, rows in splits.items()}
            facts = {"fingerprint": fingerprint_splits(splits, beyond), "bytes": sizes}
            write_value(beside, facts)
    return read_cached_value(kept)


def keep_notes(lines: list[str], folder: Path, key: str) -> list[str]:
    """Keep the notes of reading; return those kept before where the text was not read again."""
    kept = folder / f"{_digest(key)}-notes"
    if lines:
        with make_once(kept) as beside:
            if beside:
                write_value(beside, lines)
    return read_cached_value(kept) or []


def fingerprint_splits(splits: dict[str, "Dataset"], beyond: str = "") -> str:
    """Return a digest that changes when a document does, or its split."""
    digest = hashlib.sha256(beyond.encode())
    for name in SPLITS:
        digest.update(name.encode())
        for batch in read_batches(splits[name]):
            for text in batch:
                digest.update(hashlib.sha256(text.encode("utf-8")).digest())
    return digest.hexdigest()[:16]


def _digest(key: str) -> str:
    from rung import __version__

    return hashlib.sha256(f"{__version__} {STORE_LAYOUT} {key}".encode()).hexdigest()[:16]
