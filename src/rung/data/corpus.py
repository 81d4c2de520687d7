"""Load a corpus: every source as train, validation and test splits of whole documents.

Where a source has no splits of its own they are cut by a hash of each document (`splits`).
Documents are written once to an Arrow file and memory-mapped from there (`store`), so memory does
not grow with the corpus. Of a stream from the Hub only the beginning is stored; the rest is read as
it arrives (`stream`).
"""

import functools
import json
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.data import files, search, toy_language
from rung.data.files import DocumentKind
from rung.data.notes import LoadingNotes, merge_notes, printable_path
from rung.data.readers import (
    KeyedReader,
    make_article_reader,
    make_file_reader,
    make_row_reader,
    make_toy_reader,
)
from rung.data.sources import (
    WIKITEXT,
    load_hub_splits,
    parse_hub_name,
    read_python_docs,
    read_python_source,
)
from rung.data.splits import (
    AUTO_SPLIT,
    HeldOutFractions,
    SplitRequest,
    cut_splits,
    find_train_threshold,
)
from rung.data.store import (
    SPLITS,
    compute_statistics,
    keep_notes,
    read_batches,
    store_documents,
)
from rung.data.stream import Stream, open_stream
from rung.errors import CorpusError, RecipeError
from rung.files import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

DEFAULT_FRACTIONS = HeldOutFractions(0.05, 0.05)
# Python's text is split by package; packages are few, and most are small.
PACKAGE_FRACTIONS = HeldOutFractions(0.1, 0.1)

CORPORA = {
    "python-docs": "the running Python's language reference and docstrings, 2 MB (the default)",
    "python-source": "the running Python's standard library source, 11 MB",
    f"{toy_language.NAME}[@5MB][#SEED]": "text of our own grammar, whose entropy is known, 3 MB",
    "wikitext-2": "WikiText-2, raw, by article, from the Hub, 13 MB",
    "wikitext-103": "WikiText-103, raw, by article, from the Hub, 540 MB",
    "hf:ORG/NAME[:CONFIG]": "any data set on the Hub with a text column",
    "stream:ORG/NAME[:CONFIG][@10GB]": "the same, tokenized as it arrives, its text never stored; "
    "its first 10 GB",
    "PATH ...": "files, folders or quoted globs: .txt .md .tex .log, code, .jsonl .json .csv .tsv "
    ".parquet; .gz .zst",
}
PYTHON_READERS = {"python-docs": read_python_docs, "python-source": read_python_source}
HUB_PREFIXES = ("hf:", "stream:")
WIKITEXT_CONFIGS = {"wikitext-2": "wikitext-2-raw-v1", "wikitext-103": "wikitext-103-raw-v1"}

Splits = dict[str, "Dataset"]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Three memory-mapped splits of documents (column `text`), with their UTF-8 bytes.

    `fingerprint` is a digest of the content. Of a stream, `train` is the beginning, and the
    fingerprint covers the files that the rest comes from. `notes` say what reading it decided, cut
    or skipped.
    """

    name: str
    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    bytes: dict[str, int]
    fingerprint: str
    stream: Stream | None = None
    notes: tuple[str, ...] = ()
    is_unsplit: bool = False  # each split is the whole text
    is_auto_split: bool = False  # the source has no splits: they were cut here

    def split(self, name: str) -> "Dataset":
        if name not in SPLITS:
            raise CorpusError(f"no split {name!r}: choose from {', '.join(SPLITS)}")
        return getattr(self, name)

    def describe(self) -> str:
        """Return the name, and the bytes and documents of each split, in one line."""
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

    def read_train(
        self, state: Any = None, *, skip_empty: bool = False
    ) -> Iterator[tuple[list[str], Any]]:
        """Yield batches of the training documents after `state`, each with the state after it.

        None is the state before the first document. With `skip_empty` documents without text are
        left out.
        """
        for batch, after in self.stream.read(state) if self.stream else self._read(state or 0):
            yield [text for text in batch if text.strip() or not skip_empty], after

    def _read(self, done: int) -> Iterator[tuple[list[str], int]]:
        for batch in read_batches(self.train, done):
            done += len(batch)
            yield batch, done

    def sample_train(self, stride: int) -> Iterator[str]:
        """Yield every `stride`-th training document; of a stream, of its beginning only."""
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
    """Load the corpus that `source` names: one of `CORPORA`, a path, or several paths.

    `documents` is what a document is in plain text, `column` the text column of tables, `encoding`
    that of files. `whole` makes the whole text of files without splits every split, for scoring.
    `held_out` is the fraction of the documents cut off for validation and again for test; 0 leaves
    these splits empty, None chooses it by size (`HeldOutFractions`). Raises `CorpusError` when the
    source cannot be read or is too small to split.
    """
    options = files.ReadOptions(documents=documents, column=column, encoding=encoding)
    sources = [source] if isinstance(source, str) else list(source)
    check_sources(sources, options)
    title, notes = corpus_title(sources), LoadingNotes()
    stream = None
    if sources[0].startswith("stream:"):
        splits, key, stream = _read_stream(open_stream(sources[0], column), held_out)
    elif own := _find_named_splits(sources, options, notes):
        splits, key = _store_named_splits(own, title, held_out)
    elif whole and is_path(sources[0]):
        splits, key = _read_unsplit(sources, options, notes)
    else:
        splits, key = _read_and_cut(sources, options, held_out, notes)
    for split in SPLITS if held_out != 0 else ("train",):
        if len(splits[split]) == 0:
            raise CorpusError(f"{title} has no text in its {split} split")
    statistics = compute_statistics(splits, _folder(), key, stream.key if stream else "")
    lines = (
        *notes.finding.lines(),
        *keep_notes(merge_notes(notes.reading.values()), _folder(), key),
    )
    _log_notes(title, lines)
    return Corpus(
        name=title,
        stream=stream,
        notes=lines,
        is_unsplit=splits["train"] is splits["test"],
        is_auto_split=key.startswith(AUTO_SPLIT),
        **{split: splits[split].select_columns(["text"]) for split in SPLITS},
        **statistics,
    )


@functools.cache
def _log_notes(title: str, lines: tuple[str, ...]) -> None:
    """Log the notes, the same ones once."""
    for line in lines:
        logger.info("%s: %s", title, line)


def check_sources(sources: Sequence[str], options: files.ReadOptions) -> None:
    """Raise `CorpusError` for sources that cannot be one corpus, or not be read with `options`."""
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise CorpusError(
            f"the corpus is {list(sources)!r}: it must name a corpus (see `rung corpora`), or paths"
        )
    named_ones = [source for source in sources if not is_path(source)]
    if named_ones and len(sources) > 1:
        raise CorpusError(
            f"{named_ones[0]} is a corpus of its own: only files, folders and globs can be joined"
        )
    for name, value in (("column", options.column), ("encoding", options.encoding)):
        hub_rows = name == "column" and named_ones and named_ones[0].startswith(HUB_PREFIXES)
        if value is not None and named_ones and not hub_rows:
            raise CorpusError(
                f"--{name} is {value!r}, but {named_ones[0]} needs none: leave it out"
            )


def check_documents(source: str | Sequence[str], documents: str) -> None:
    """Raise `RecipeError` for a kind of documents that is asked of a corpus with its own.

    Only the text of files is cut into documents as `documents` says.
    """
    first = source if isinstance(source, str) else source[0]
    if not is_path(first):
        raise RecipeError(
            f"--documents is {documents!r}, and {first} has documents of its own: it is for plain "
            "text in files, so leave it out"
        )


def _folder() -> Path:
    return cache_folder() / "corpora"


def is_path(source: str) -> bool:
    """Return whether a source is a path or a glob, and not the name of a corpus."""
    own = source in CORPORA or toy_language.parse_name(source) is not None
    return not own and not source.startswith(HUB_PREFIXES)


def corpus_title(source: str | Sequence[str]) -> str:
    """Return the name to show: that of the first file or folder, and the number of others."""
    sources = [source] if isinstance(source, str) else source
    first = sources[0]
    if is_path(first):
        path = Path(first).expanduser()
        first = printable_path(path.resolve().name if path.exists() else path.name)
    return first if len(sources) == 1 else f"{first} and {len(sources) - 1:,} more"


def _read_stream(stream: Stream, held_out: float | None) -> tuple[Splits, str, Stream]:
    """Return the beginning as splits, their key, and the stream without what is held out."""
    key = f"stream {stream.key}"
    if not stream.held_out_rows:
        # A small beginning holds out no more than the default: the stream goes on behind it.
        fraction = DEFAULT_FRACTIONS.test if held_out is None else held_out
        splits, key = cut_splits(
            _split_request(stream.source, (stream.read_beginning, key), fraction), _folder()
        )
        threshold = find_train_threshold(splits, fraction) if fraction else 0.0
        return splits, key, replace(stream, train_from=threshold)
    own: dict[str, KeyedReader] = {"train": (stream.read_beginning, key)}
    for name in stream.held_out_rows:
        own[name] = (functools.partial(stream.read_held_out, name), f"{name} {key}")
    return *_store_named_splits(own, stream.source, held_out), stream


def _store_named_splits(
    own: dict[str, KeyedReader], source: str, held_out: float | None
) -> tuple[Splits, str]:
    """Store the splits that the source names; one that is held out may stand for the other."""
    other = own.get("test") or own.get("validation")
    if other is None:
        return cut_splits(_split_request(source, own["train"], held_out), _folder())
    if held_out is not None:
        raise CorpusError(
            f"held_out is {held_out}, but {source} has splits of its own: leave it out"
        )
    own = {"validation": other, "test": other} | own
    stored = {name: store_documents(read, _folder(), key) for name, (read, key) in own.items()}
    return stored, json.dumps({name: key for name, (_, key) in own.items()})


def _read_unsplit(
    sources: Sequence[str], options: files.ReadOptions, notes: LoadingNotes
) -> tuple[Splits, str]:
    read, key = make_file_reader(_find_files(sources, options, notes), options, notes)
    return dict.fromkeys(SPLITS, store_documents(read, _folder(), key)), f"whole {key}"


def _read_and_cut(
    sources: Sequence[str],
    options: files.ReadOptions,
    held_out: float | None,
    notes: LoadingNotes,
) -> tuple[Splits, str]:
    source = sources[0]
    if source in PYTHON_READERS:
        reader = PYTHON_READERS[source], f"{source} {sys.version} {sys.prefix}"
        request = _split_request(source, reader, held_out)
        return cut_splits(replace(request, default=PACKAGE_FRACTIONS), _folder())
    if size_and_seed := toy_language.parse_name(source):
        request = _split_request(source, make_toy_reader(*size_and_seed), held_out)
        try:
            return cut_splits(request, _folder())
        except CorpusError as error:
            raise CorpusError(
                f"{source} is too little text to split into train, validation and test: name a "
                f"larger size, as in {toy_language.NAME}@100KB"
            ) from error
    found = _find_files(sources, options, notes)
    reader = make_file_reader(found, options, notes)
    finer = make_file_reader(found, options, notes, files.FINE_CHUNKING)
    shown = printable_path(source) if len(sources) == 1 else corpus_title(sources)
    is_prose = options.documents == "paragraphs" and not any(map(files.is_table, found))
    request = _split_request(shown, reader, held_out)
    return cut_splits(replace(request, finer=finer, refine=is_prose), _folder())


def _split_request(source: str, reader: KeyedReader, held_out: float | None) -> SplitRequest:
    read, key = reader
    return SplitRequest(
        source=source, read=read, key=key, held_out=held_out, default=DEFAULT_FRACTIONS
    )


def _find_files(
    sources: Sequence[str], options: files.ReadOptions, notes: LoadingNotes
) -> list[Path]:
    """Find the files to read, with a note for each that is skipped."""
    found, skipped = search.find_files(sources)
    for path, why in skipped.items():
        notes.finding.add(why, printable_path(path))
    files.check_read_options(found, options, notes.finding)
    return found


def _find_named_splits(
    sources: Sequence[str], options: files.ReadOptions, notes: LoadingNotes
) -> dict[str, KeyedReader]:
    """Return the splits that the source itself names; none when it names none."""
    source = sources[0]
    if source in WIKITEXT_CONFIGS:
        articles = load_hub_splits(WIKITEXT, WIKITEXT_CONFIGS[source])
        return {name: make_article_reader(rows) for name, rows in articles.items()}
    if source.startswith("hf:"):
        splits = load_hub_splits(*parse_hub_name(source))
        for name in {"train"} ^ set(splits) if len(splits) < len(SPLITS) else ():
            notes.finding.add(_name_roles(name, splits), name)
        return {
            name: make_row_reader(rows, source, options.column, notes)
            for name, rows in splits.items()
        }
    if not is_path(source):
        return {}
    split_files = search.find_split_files(sources, notes.finding)
    for name, found in split_files.items():
        for entry in found:
            notes.finding.add(_name_roles(name, split_files), printable_path(entry))
    everything = [path for found in split_files.values() for path in found]
    files.check_read_options(everything, options, notes.finding)
    return {name: make_file_reader(found, options, notes) for name, found in split_files.items()}


def _name_roles(split: str, named_splits: Collection[str]) -> str:
    """Return the split's name, or both held-out names where it stands for the other too."""
    return split if split == "train" or len(named_splits) == len(SPLITS) else "validation and test"
