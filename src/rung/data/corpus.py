"""Text in, documents out: every source as train, validation and test splits of whole documents.

Where a source has no splits of its own they are cut by a hash of each document, so that adding text
does not move a document from one split to another; a small text, which holds out more, moves some
as it grows (`HeldOut`). Documents are written once to an Arrow file and memory-mapped from there
(`datasets`), so memory does not grow with the corpus; of a stream from the Hub only the beginning
is, and the rest is read as it arrives.
"""

import functools
import json
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.data import files, search
from rung.data.files import DocumentKind
from rung.data.notes import CorpusNotes, merge_notes, printable_path
from rung.data.sources import (
    WIKITEXT,
    join_articles,
    load_hub_splits,
    parse_hub_name,
    read_python_docs,
    read_python_source,
)
from rung.data.store import (
    SPLITS,
    HeldOut,
    Reader,
    choose_held_out,
    count_distinct,
    cut,
    find_border,
    hold_out_nothing,
    keep_notes,
    measure,
    read_batches,
    says_something,
    store,
    store_splits,
)
from rung.data.stream import Stream, open_stream
from rung.device import cache_folder
from rung.errors import CorpusError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CORPORA", "SPLITS", "Corpus", "DocumentKind", "corpus_title", "is_path", "load_corpus"]

logger = logging.getLogger(__name__)

CUT = "cut "  # begins the key of what is
HELD_OUT = HeldOut(0.05, 0.05)
HELD_OUT_PACKAGES = HeldOut(0.1, 0.1)  # of the packages: there are few of them, and most are small

CORPORA = {
    "python-docs": "the running Python's language reference and docstrings, 2 MB (the default)",
    "python-source": "the running Python's standard library source, 11 MB",
    "wikitext-2": "WikiText-2, raw, by article, from the Hub, 13 MB",
    "wikitext-103": "WikiText-103, raw, by article, from the Hub, 540 MB",
    "hf:ORG/NAME[:CONFIG]": "any data set on the Hub with a text column",
    "stream:ORG/NAME[:CONFIG][@10GB]": "the same, tokenized as it arrives, its text never stored; "
    "its first 10 GB",
    "PATH ...": "files, folders or quoted globs: .txt .md .tex .log, code, .jsonl .json .csv .tsv "
    ".parquet; .gz .zst",
}
PYTHON = {"python-docs": read_python_docs, "python-source": read_python_source}
WIKITEXT_CONFIGS = {"wikitext-2": "wikitext-2-raw-v1", "wikitext-103": "wikitext-103-raw-v1"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Three splits of documents (column `text`), memory-mapped, their UTF-8 bytes, and a
    fingerprint of their content.

    Of a stream, `train` is the beginning, and the fingerprint is also that of the files it comes
    from. `notes` say what reading it settled, cut or passed over.
    """

    name: str
    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    bytes: dict[str, int]
    fingerprint: str
    stream: Stream | None = None
    notes: tuple[str, ...] = ()
    is_unsplit: bool = False  # every split is all of it
    is_auto_split: bool = False  # it has no splits of its own

    def split(self, name: str) -> "Dataset":
        """One split by name."""
        if name not in SPLITS:
            raise CorpusError(f"no split {name!r}: choose from {', '.join(SPLITS)}")
        return getattr(self, name)

    def describe(self) -> str:
        """Its name, and the bytes and documents of each split."""
        kept = [name for name in SPLITS if len(self.split(name))]
        sizes = ", ".join(
            f"{name} {self.bytes[name]:,}{'' if place else ' bytes'} in {len(self.split(name)):,}"
            f"{'' if place else ' documents'}"
            for place, name in enumerate(kept)
        )
        if self.stream:
            sizes += ", train is only its beginning"
        if self.is_auto_split:
            sizes += (
                "; validation and test are cut from the text (rung train ngram --set held_out=0 "
                "counts all of it)"
            )
        return f"{self.name}: {sizes}" + ("" if "test" in kept else "; nothing is held out")

    def read_train(self, state: Any = None) -> Iterator[tuple[list[str], Any]]:
        """The training documents after `state` (None: all), a few at a time, each time with the
        state after them.
        """
        if self.stream:
            yield from self.stream.read(state)
            return
        done = state or 0
        for batch in read_batches(self.train, done):
            done += len(batch)
            yield batch, done

    def sample_train(self, stride: int) -> Iterator[str]:
        """One training document in `stride`, from all over the corpus; of a stream, from its
        beginning.
        """
        number = 0
        for batch in read_batches(self.train):
            yield from batch[-number % stride :: stride]
            number += len(batch)


def load_corpus(
    source: str | Sequence[str] = "python-docs",
    documents: DocumentKind = "paragraphs",
    *,
    whole: bool = False,
    held_out: float | None = None,
    column: str | None = None,
    encoding: str | None = None,
) -> Corpus:
    """The corpus that `source` names (see `CORPORA`; several are paths); `documents` is what one is
    in plain text.

    `column` is the text column of tables, `encoding` that of files. `whole` keeps files that have
    no splits of their own in one piece, as every split: for scoring. `held_out` is the share of the
    documents that is cut off for validation and again for test (0: none is, and these splits are
    empty); left out, it is chosen (`HeldOut`). Raises `CorpusError` when it cannot be read or is
    too small to split.
    """
    reading = files.ReadOptions(documents=documents, column=column, encoding=encoding)
    sources = [source] if isinstance(source, str) else list(source)
    check_sources(sources, reading)
    title, notes = corpus_title(sources), _Notes()
    stream = None
    if sources[0].startswith("stream:"):
        splits, key, stream = _read_stream(open_stream(sources[0], column), held_out)
    elif own := _read_named_splits(sources, reading, notes):
        splits, key = _store_own(own, title, held_out)
    elif whole and is_path(sources[0]):
        splits, key = _read_whole(sources, reading, notes)
    else:
        splits, key = _read_and_cut(sources, reading, held_out, notes)
    for split in SPLITS if held_out != 0 else ("train",):
        if len(splits[split]) == 0:
            raise CorpusError(f"{title} has no text in its {split} split")
    facts = measure(splits, _folder(), key, stream.key if stream else "")
    lines = (
        *notes.finding.lines(),
        *keep_notes(merge_notes(notes.readings.values()), _folder(), key),
    )
    _say(title, lines)
    is_unsplit, is_auto_split = splits["train"] is splits["test"], key.startswith(CUT)
    splits = {split: splits[split].select_columns(["text"]) for split in SPLITS}
    return Corpus(
        name=title,
        stream=stream,
        notes=lines,
        is_unsplit=is_unsplit,
        is_auto_split=is_auto_split,
        **splits,
        **facts,
    )


@dataclass(frozen=True)
class _Notes:
    """What was noticed when the files were found, and when they were read: of each file list the
    last time.
    """

    finding: CorpusNotes = field(default_factory=CorpusNotes)
    readings: dict[str, CorpusNotes] = field(default_factory=dict)


@functools.cache
def _say(title: str, lines: tuple[str, ...]) -> None:
    """Log the notes, the same ones once."""
    for line in lines:
        logger.info("%s: %s", title, line)


def check_sources(sources: Sequence[str], reading: files.ReadOptions) -> None:
    """Raise `CorpusError` for sources that cannot be one corpus, or not be read so."""
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise CorpusError(
            f"the corpus is {list(sources)!r}: it must name a corpus (see `rung corpora`), or paths"
        )
    named_ones = [source for source in sources if not is_path(source)]
    if named_ones and len(sources) > 1:
        raise CorpusError(
            f"{named_ones[0]} is a corpus of its own: only files, folders and globs can be joined"
        )
    for name, value in (("column", reading.column), ("encoding", reading.encoding)):
        if value is not None and named_ones and (name == "encoding" or named_ones[0] in CORPORA):
            raise CorpusError(
                f"--{name} is {value!r}, but {named_ones[0]} needs none: leave it out"
            )


def _folder() -> Path:
    return cache_folder() / "corpora"


def is_path(source: str) -> bool:
    """Whether a source is a path or a glob, and not the name of a corpus."""
    return source not in CORPORA and not source.startswith(("hf:", "stream:"))


def corpus_title(source: str | Sequence[str]) -> str:
    """What a corpus is called on the screen: after its file or folder, and the number of others."""
    sources = [source] if isinstance(source, str) else source
    first = sources[0]
    if is_path(first):
        path = Path(first).expanduser()
        first = printable_path(path.resolve().name if path.exists() else path.name)
    return first if len(sources) == 1 else f"{first} and {len(sources) - 1:,} more"


def _read_stream(
    stream: Stream, held_out: float | None
) -> tuple[dict[str, "Dataset"], str, Stream]:
    """The beginning of the stream as splits, what names it, and the stream without what is held
    out.
    """
    key = f"stream {stream.key}"
    if not stream.held_out_rows:
        share = (
            HELD_OUT.test if held_out is None else held_out
        )  # no more, where its beginning is small: it goes on
        splits, key = _cut(stream.read_beginning, stream.source, key, share)
        return splits, key, replace(stream, train_from=find_border(splits, share) if share else 0.0)
    own: dict[str, tuple[Reader, str]] = {"train": (stream.read_beginning, key)}
    for name in stream.held_out_rows:
        own[name] = (functools.partial(stream.read_held_out, name), f"{name} {key}")
    return *_store_own(own, stream.source, held_out), stream


def _store_own(
    own: dict[str, tuple[Reader, str]], source: str, held_out: float | None
) -> tuple[dict[str, "Dataset"], str]:
    """Splits that the source itself names; one that is held out may stand for the other."""
    other = own.get("test") or own.get("validation")
    if other is None:
        return _cut(own["train"][0], source, own["train"][1], held_out)
    if held_out is not None:
        raise CorpusError(
            f"held_out is {held_out}, but {source} has splits of its own: leave it out"
        )
    own = {"validation": other, "test": other} | own
    stored = {name: store(read, _folder(), key) for name, (read, key) in own.items()}
    return stored, json.dumps({name: key for name, (_, key) in own.items()})


def _read_whole(
    sources: Sequence[str], reading: files.ReadOptions, notes: _Notes
) -> tuple[dict[str, "Dataset"], str]:
    _, read, key = _find(sources, reading, notes)
    return dict.fromkeys(SPLITS, store(read, _folder(), key)), f"whole {key}"


def _read_and_cut(
    sources: Sequence[str], reading: files.ReadOptions, held_out: float | None, notes: _Notes
) -> tuple[dict[str, "Dataset"], str]:
    source = sources[0]
    if source in PYTHON:
        return _cut(PYTHON[source], source, f"{source} {sys.version} {sys.prefix}", held_out)
    found, read, key = _find(sources, reading, notes)
    fine = _file_reader(found, reading, notes, files.FINE_CHUNKING), f"fine {key}"
    shown = printable_path(source) if len(sources) == 1 else corpus_title(sources)
    is_prose = reading.documents == "paragraphs" and not any(map(files.is_table, found))
    return _cut(read, shown, key, held_out, fine, refine=is_prose)


def _find(
    sources: Sequence[str], reading: files.ReadOptions, notes: _Notes
) -> tuple[list[Path], Reader, str]:
    """The files, what reads them, and what names them; those that cannot be read are noted."""
    found, skipped = search.find_files(sources)
    for path, why in skipped.items():
        notes.finding.add(why, printable_path(path))
    files.check_reading(found, reading, notes.finding)
    return found, _file_reader(found, reading, notes), _file_key(found, reading)


def _as_shares(held_out: float | None, source: str) -> HeldOut:
    if held_out is None:
        return HELD_OUT_PACKAGES if source in PYTHON else HELD_OUT
    return HeldOut(held_out, held_out)


def _cut(
    read: Reader,
    source: str,
    key: str,
    held_out: float | None,
    fine: tuple[Reader, str] | None = None,
    *,
    refine: bool = False,
) -> tuple[dict[str, "Dataset"], str]:
    """The documents as splits by place, and what names them.

    Where no share is asked for and the test split would say too little, more is held out. `fine`
    gives more documents where they are too few to be cut, and with `refine` where they are too few
    to say something. Empty lines are left out where a share is held out: all of them have one
    place.
    """
    if held_out == 0:
        return hold_out_nothing(store(read, _folder(), key)), f"all of {key}"
    read, key = _leave_out_empty(read), f"full {key}"
    shares = _as_shares(held_out, source)
    splits = store_splits(read, _folder(), key, shares)
    if all(len(rows) for rows in splits.values()) and (
        held_out is not None or says_something(splits["test"])
    ):
        return splits, f"{CUT}{shares} {key}"
    everything = store(read, _folder(), key)
    chosen = choose_held_out(everything, shares) if held_out is None else shares
    few = count_distinct(everything) < len(SPLITS)
    if refine and not few and held_out is None:
        few = not says_something(cut(everything, source, chosen)["test"])
    if fine and few:
        key = f"full {fine[1]}"
        everything = store(_leave_out_empty(fine[0]), _folder(), key)
        chosen = choose_held_out(everything, shares) if held_out is None else shares
    return cut(everything, source, chosen), f"{CUT}{chosen} {key}"


def _read_named_splits(
    sources: Sequence[str], reading: files.ReadOptions, notes: _Notes
) -> dict[str, tuple[Reader, str]]:
    """The splits that the source itself names; none when it names none."""
    source = sources[0]
    if source in WIKITEXT_CONFIGS:
        rows = load_hub_splits(WIKITEXT, WIKITEXT_CONFIGS[source])
        return {
            name: (_article_reader(r), f"articles {r._fingerprint}") for name, r in rows.items()
        }
    if source.startswith("hf:"):
        path, config = parse_hub_name(source)
        rows = load_hub_splits(path, config)
        column = reading.column
        key = f"rows {column}" if column else "rows"
        for name in {"train"} ^ set(rows) if len(rows) < len(SPLITS) else ():
            notes.finding.add(_name_roles(name, rows), name)
        return {
            name: (_row_reader(r, source, column, notes), f"{key} {r._fingerprint}")
            for name, r in rows.items()
        }
    if not is_path(source):
        return {}
    splits = search.find_split_files(sources, notes.finding)
    for name, found in splits.items():
        for entry in found:
            notes.finding.add(_name_roles(name, splits), printable_path(entry))
    files.check_reading(
        [path for found in splits.values() for path in found], reading, notes.finding
    )
    return {
        name: (_file_reader(found, reading, notes), _file_key(found, reading))
        for name, found in splits.items()
    }


def _name_roles(split: str, named_splits: Collection[str]) -> str:
    """The split, and the other held-out one where there is none and it stands for it."""
    return split if split == "train" or len(named_splits) == len(SPLITS) else "validation and test"


def _file_reader(
    found: list[Path],
    reading: files.ReadOptions,
    notes: _Notes,
    grain: files.Chunking = files.COARSE_CHUNKING,
) -> Reader:
    def read() -> Iterator[tuple[str, str]]:
        noticed = notes.readings[str(found)] = (
            CorpusNotes()
        )  # a second reading, in finer grain, replaces the first
        return ((text, "") for text in files.read_documents(found, reading, noticed, grain))

    return read


def _leave_out_empty(read: Reader) -> Reader:
    return lambda: ((text, group) for text, group in read() if text.strip())


def _article_reader(rows: "Dataset") -> Reader:
    return lambda: ((text, "") for text in join_articles(row["text"] for row in rows))


def _row_reader(rows: "Dataset", where: str, column: str | None, notes: _Notes) -> Reader:
    def read() -> Iterator[tuple[str, str]]:
        noticed = notes.readings[rows._fingerprint] = CorpusNotes()
        return ((text, "") for text in files.read_texts(rows, where, column, noticed))

    return read


def _file_key(found: list[Path], reading: files.ReadOptions) -> str:
    how = [value for value in (reading.documents, reading.column, reading.encoding) if value]
    return f"{json.dumps(how)} {files.fingerprint_files(found)}"
