"""Documents on disk: Arrow files, memory-mapped, written and cut into splits in the memory of a few
documents.

A document's place, a number in [0, 1), decides its split when splits are cut, so that each goes
straight to the file of its own. What costs a pass over the text to know (its bytes, its
fingerprint) is found once and kept.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.data import files
from rung.errors import CorpusError
from rung.files import keep, recall, remember

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
LAYOUT = 7  # one more whenever the same source is read differently: what was stored before is left
WRITTEN_AT_ONCE = 1 << 21  # characters of documents in memory before they are written
READ_AT_ONCE = 1 << 16  # bytes of documents that are read together, about
FEW = 16
# That a test split should have, and that many different documents: fewer say next to nothing.
TEST_BYTES = 4_000
TEST_DOCUMENTS = 10
LARGEST_TEST = 0.2  # of the documents

Reader = Callable[[], Iterator[tuple[str, str]]]  # (text, the group that must stay on one side)


@dataclass(frozen=True)
class HeldOut:
    """What share of the documents is the test split, and what share validation: those of the lowest
    places, test first.

    A text that is too small for its test split to say anything holds out more: `larger`. It goes to
    twice the share and to four times, and to nothing between, so that as the text grows documents
    stay where they are but for those two moments; there they move from test to validation or train,
    and from validation to train, never back.
    """

    test: float
    validation: float

    def larger(self) -> "HeldOut | None":
        """Twice as much test text, half as much validation text as that; None where that would be
        too much.
        """
        test = 2 * self.test
        return HeldOut(test, max(self.validation, test / 2)) if test <= LARGEST_TEST else None


def store(read: Reader, folder: Path, key: str) -> "Dataset":
    """The reader's documents as a memory-mapped data set with columns `text` and `place`, written
    once.
    """
    return _store(read, folder, key, {"all": (0.0, 1.0)})["all"]


def store_splits(read: Reader, folder: Path, key: str, held_out: HeldOut) -> dict[str, "Dataset"]:
    """The same as train, validation and test by place; a split may be empty."""
    border = held_out.test + held_out.validation
    bounds = {
        "train": (border, 1.0),
        "validation": (held_out.test, border),
        "test": (0.0, held_out.test),
    }
    return _store(read, folder, f"{key} {held_out}", bounds)


def _store(
    read: Reader, folder: Path, key: str, bounds: dict[str, tuple[float, float]]
) -> dict[str, "Dataset"]:
    """A data set for each of `bounds`, of the documents whose place is between them."""
    import datasets

    def write(beside: Path) -> None:
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(ArrowFile(beside / f"{name}.arrow")) for name in bounds
            }
            for text, group in read():
                place = files.hash_to_unit_interval(group or text)
                name = next(name for name, (low, high) in bounds.items() if low <= place < high)
                writers[name].write(text, place)

    kept = keep(folder / _digest(key), write)
    return {name: datasets.Dataset.from_file(str(kept / f"{name}.arrow")) for name in bounds}


class ArrowFile:
    """Documents and their places as they come, written when there are a few megabytes of them."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self.schema = pyarrow.schema({"text": pyarrow.large_string(), "place": pyarrow.float64()})
        self.file = pyarrow.ipc.new_stream(str(path), self.schema)
        self.texts: list[str] = []
        self.places: list[float] = []
        self.size = 0

    def __enter__(self) -> "ArrowFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self.file.close()

    def write(self, text: str, place: float) -> None:
        """Add one document."""
        self.texts.append(text)
        self.places.append(place)
        self.size += len(text)
        if self.size >= WRITTEN_AT_ONCE or len(self.texts) >= WRITTEN_AT_ONCE // 64:
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


def cut(everything: "Dataset", source: str, held_out: HeldOut) -> dict[str, "Dataset"]:
    """Few documents as train, validation and test by place; those nearest the border fill a split
    left empty.

    Documents of one place (copies, or a group) stay on one side. Memory holds a few numbers for
    each. Raises `CorpusError` where there are fewer places than splits.
    """
    import numpy

    if count_distinct(everything) < len(SPLITS):
        raise CorpusError(
            f"{source} is too little text to split into train, validation and test: "
            f"{_describe_little(everything)}; "
            "a rung that counts can take all of it, with --set held_out=0"
        )
    place = _places(everything)
    order = numpy.argsort(place, kind="stable")
    places, starts = numpy.unique(place[order], return_index=True)
    test = max(1, min((places < held_out.test).sum(), len(places) - 2))
    validation = max(
        test + 1, min((places < held_out.test + held_out.validation).sum(), len(places) - 1)
    )
    bounds = {"test": (0, starts[test]), "validation": (starts[test], starts[validation])}
    bounds["train"] = (starts[validation], len(place))
    return {
        name: everything.select(numpy.sort(order[low:high])) for name, (low, high) in bounds.items()
    }


def hold_out_nothing(everything: "Dataset") -> dict[str, "Dataset"]:
    """All documents as train, and none as validation and test."""
    none = everything.select([])
    return {"train": everything, "validation": none, "test": none}


def choose_held_out(everything: "Dataset", held_out: HeldOut) -> HeldOut:
    """The smallest share, from `held_out` on, whose test split says something; else the largest."""
    place = _places(everything)
    while larger := held_out.larger():
        if says_something(everything.select((place < held_out.test).nonzero()[0])):
            break
        held_out = larger
    return held_out


def says_something(rows: "Dataset") -> bool:
    """Whether a test split has text and different documents enough."""
    size, different = 0, set()
    for batch in read_batches(rows):
        for text in batch:
            size += len(text.encode())
            different.add(hash(text))
            if size >= TEST_BYTES and len(different) >= TEST_DOCUMENTS:
                return True
    return False


def _describe_little(everything: "Dataset") -> str:
    """What a text that cannot be split has, and what would help."""
    lines: set[str] = set()
    count = 0
    for batch in read_batches(everything):
        for line in filter(str.strip, "\n".join(batch).splitlines()):
            count += 1
            lines.add(line.strip())
    if len(lines) == 1 and count > 1:
        return (
            f"all documents are equal, one line {count:,} times; give text that says more than one "
            f"thing"
        )
    if len(lines) == 2 < count and count_utf8_bytes(everything) >= 4_000:
        return (
            f"only 2 of its {count:,} lines are different; give text that says more than two things"
        )
    documents, different = len(everything), count_distinct(everything)
    if different == 1 and documents > 1:
        return f"all {documents:,} documents are equal; give text that says more than one thing"
    counted = f"{documents:,} {'document' if documents == 1 else 'documents'}"
    copies = f", {different} of them different" if different < documents else ""
    return (
        f"{counted}{copies}, {count_utf8_bytes(everything):,} bytes; give at least 4,000 bytes, "
        "with blank lines between the paragraphs, or try --documents lines"
    )


def count_distinct(everything: "Dataset") -> int:
    """How many places there are."""
    import numpy

    return len(numpy.unique(_places(everything)))


def read_batches(rows: "Dataset", start: int = 0) -> Iterator[list[str]]:
    """The documents from number `start` on, some at a time: by their bytes, for one may be as long
    as a thousand.
    """
    if rows._indices is not None:  # cut from few
        for at in range(start, len(rows), FEW):
            yield list(rows[at : at + FEW]["text"])
        return
    for chunk in rows.data.column("text").chunks:
        size = max(1, READ_AT_ONCE * len(chunk) // max(1, chunk.nbytes))
        for at in range(start, len(chunk), size):
            yield chunk.slice(at, size).to_pylist()
        start = max(0, start - len(chunk))


def count_utf8_bytes(rows: "Dataset") -> int:
    """UTF-8 bytes of the documents."""
    return sum(len(text.encode()) for batch in read_batches(rows) for text in batch)


def measure(
    splits: dict[str, "Dataset"], folder: Path, key: str, beyond: str = ""
) -> dict[str, Any]:
    """`fingerprint` of the content, of what lies `beyond` it too, and `bytes` of each split; found
    once for a key.
    """
    return remember(
        folder / f"{_digest(key)}-facts",
        lambda: {
            "fingerprint": fingerprint_splits(splits, beyond),
            "bytes": {name: count_utf8_bytes(rows) for name, rows in splits.items()},
        },
    )


def keep_notes(lines: list[str], folder: Path, key: str) -> list[str]:
    """What was noticed when the documents were read; where they are read no more, what was noticed
    then.
    """
    kept = folder / f"{_digest(key)}-notes"
    return remember(kept, lambda: lines) if lines else recall(kept) or []


def fingerprint_splits(splits: dict[str, "Dataset"], beyond: str = "") -> str:
    """Changes when a document does, or its split."""
    digest = hashlib.sha256(beyond.encode())
    for name in SPLITS:
        digest.update(name.encode())
        for batch in read_batches(splits[name]):
            for text in batch:
                digest.update(hashlib.sha256(text.encode("utf-8")).digest())
    return digest.hexdigest()[:16]


def find_border(splits: dict[str, "Dataset"], held_out: float) -> float:
    """The place from which on documents are trained on, for those yet to come."""
    kept = _places(splits["train"]).min()
    held = max(_places(splits[name]).max() for name in ("validation", "test"))
    return float(min(kept, max(2 * held_out, math.nextafter(held, 1.0))))


def _digest(key: str) -> str:
    from rung import __version__

    return hashlib.sha256(f"{__version__} {LAYOUT} {key}".encode()).hexdigest()[:16]


def _places(everything: "Dataset") -> "numpy.ndarray":
    return everything.select_columns(["place"]).with_format("arrow")[:].column("place").to_numpy()
