"""Text in, documents out: every source as train, validation and test splits of whole documents.

Where a source has no splits of its own they are cut by a hash of each document, so that adding text
never moves a document from one split to another. Documents are written once to an Arrow file and
memory-mapped from there (`datasets`), so memory does not grow with the corpus; of a stream from the Hub only
the beginning is, and the rest is read as it arrives.
"""

import functools
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.corpus import files, named
from rung.corpus.files import DocumentKind
from rung.corpus.stored import (
    SPLITS,
    Reader,
    count_distinct,
    cut,
    find_border,
    measure,
    read_batches,
    store,
    store_splits,
)
from rung.corpus.stream import Stream, open_stream
from rung.device import cache_folder
from rung.errors import CorpusError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CORPORA", "SPLITS", "Corpus", "DocumentKind", "load_corpus"]

logger = logging.getLogger(__name__)

HELD_OUT = 0.05  # of the documents, for validation and again for test
HELD_OUT_PACKAGES = 0.1  # of the packages: there are few of them, and most are small

CORPORA = {
    "python-docs": "the running Python's language reference and docstrings, 2 MB (the default)",
    "python-source": "the running Python's standard library source, 11 MB",
    "wikitext-2": "WikiText-2, raw, by article, from the Hub, 13 MB",
    "wikitext-103": "WikiText-103, raw, by article, from the Hub, 540 MB",
    "hf:ORG/NAME[:CONFIG]": "any data set on the Hub with a text column",
    "stream:ORG/NAME[:CONFIG][@10GB]": "the same, tokenized as it arrives, its text never stored; its first 10 GB",
    "PATH": "a file, a folder or a glob: .txt .md .rst .py .jsonl .json .csv .parquet, also .gz .zst",
}
PYTHON = {"python-docs": named.read_docs, "python-source": named.read_source}
WIKITEXT_CONFIGS = {"wikitext-2": "wikitext-2-raw-v1", "wikitext-103": "wikitext-103-raw-v1"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Three splits of documents (column `text`), memory-mapped, their UTF-8 bytes, and a fingerprint of their content.

    Of a stream, `train` is the beginning, and the fingerprint is also that of the files it comes from.
    """

    name: str
    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    bytes: dict[str, int]
    fingerprint: str
    stream: Stream | None = None

    def split(self, name: str) -> "Dataset":
        """One split by name."""
        if name not in SPLITS:
            raise CorpusError(f"no split {name!r}: choose from {', '.join(SPLITS)}")
        return getattr(self, name)

    def read_train(self, state: Any = None) -> Iterator[tuple[list[str], Any]]:
        """The training documents after `state` (None: all), a few at a time, each time with the state after them."""
        if self.stream:
            yield from self.stream.read(state)
            return
        done = state or 0
        for batch in read_batches(self.train, done):
            done += len(batch)
            yield batch, done

    def sample_train(self, stride: int) -> Iterator[str]:
        """One training document in `stride`, from all over the corpus; of a stream, from its beginning."""
        number = 0
        for batch in read_batches(self.train):
            yield from batch[-number % stride :: stride]
            number += len(batch)


def load_corpus(source: str = "python-docs", documents: DocumentKind = "paragraphs", *, whole: bool = False) -> Corpus:
    """The corpus that `source` names (see `CORPORA`); `documents` says what a document is in plain text.

    `whole` keeps files that have no splits of their own in one piece, as every split: for scoring.
    Raises `CorpusError` when it cannot be read or is too small to split.
    """
    files.check_document_kind(documents)
    stream = None
    if source.startswith("stream:"):
        splits, key, stream = _read_stream(open_stream(source))
    elif own := _read_named_splits(source, documents):
        splits, key = _store_own(own, source)
    else:
        splits, key = _read_and_cut(source, documents, whole and _is_path(source))
    for split in SPLITS:
        if len(splits[split]) == 0:
            raise CorpusError(f"{source} has no text in its {split} split")
    splits = {split: splits[split].select_columns(["text"]) for split in SPLITS}
    facts = measure(splits, _folder(), key, stream.key if stream else "")
    return Corpus(name=_name(source), stream=stream, **splits, **facts)


def _folder() -> Path:
    return cache_folder() / "corpora"


def _is_path(source: str) -> bool:
    return source not in CORPORA and not source.startswith(("hf:", "stream:"))


def _name(source: str) -> str:
    if not _is_path(source):
        return source
    path = Path(source).expanduser().resolve()
    return path.parent.name if _split_name(path) == "train" and _find_split_files(path) else path.name


def _read_stream(stream: Stream) -> tuple[dict[str, "Dataset"], str, Stream]:
    """The beginning of the stream as splits, what names it, and the stream without what is held out."""
    key = f"stream {stream.key}"
    if not stream.held_out_rows:
        splits, key = _cut(stream.read_beginning, stream.source, key, HELD_OUT)
        return splits, key, replace(stream, train_from=find_border(splits, HELD_OUT))
    own: dict[str, tuple[Reader, str]] = {"train": (stream.read_beginning, key)}
    for name in stream.held_out_rows:
        own[name] = (functools.partial(stream.read_held_out, name), f"{name} {key}")
    return *_store_own(own, stream.source), stream


def _store_own(own: dict[str, tuple[Reader, str]], source: str) -> tuple[dict[str, "Dataset"], str]:
    """Splits that the source itself names; one that is held out may stand for the other."""
    held_out = own.get("test") or own.get("validation")
    if held_out is None:
        return _cut(own["train"][0], source, own["train"][1], HELD_OUT)
    own = {"validation": held_out, "test": held_out} | own
    stored = {name: store(read, _folder(), key) for name, (read, key) in own.items()}
    return stored, json.dumps({name: key for name, (_, key) in own.items()})


def _read_and_cut(source: str, documents: DocumentKind, whole: bool) -> tuple[dict[str, "Dataset"], str]:
    if source in PYTHON:
        return _cut(PYTHON[source], source, f"{source} {sys.version} {sys.prefix}", HELD_OUT_PACKAGES)
    found = files.find_files(source)
    read, key = _file_reader(found, documents), _file_key(found, documents)
    fine = _file_reader(found, documents, files.FINE), _file_key(found, "fine paragraphs")
    if not whole:
        return _cut(read, source, key, HELD_OUT, fine if documents == "paragraphs" else None)
    return dict.fromkeys(SPLITS, store(read, _folder(), key)), f"whole {key}"


def _cut(
    read: Reader, source: str, key: str, held_out: float, fine: tuple[Reader, str] | None = None
) -> tuple[dict[str, "Dataset"], str]:
    """The documents as splits by place, and what names them; `fine` gives more documents where they are too few."""
    splits = store_splits(read, _folder(), key, held_out)
    if all(len(rows) for rows in splits.values()):
        return splits, f"cut {held_out} {key}"
    everything = store(read, _folder(), key)
    if fine and count_distinct(everything) < len(SPLITS):
        everything = store(fine[0], _folder(), fine[1])
        key = fine[1]
    return cut(everything, source, held_out), f"cut {held_out} {key}"


def _read_named_splits(source: str, documents: DocumentKind) -> dict[str, tuple[Reader, str]]:
    """The splits that the source itself names; none when it names none."""
    if source in WIKITEXT_CONFIGS:
        rows = named.load_splits(named.WIKITEXT, WIKITEXT_CONFIGS[source])
        return {name: (_article_reader(r), f"articles {r._fingerprint}") for name, r in rows.items()}
    if source.startswith("hf:"):
        path, config = named.parse_hub_name(source)
        rows = named.load_splits(path, config)
        return {name: (_row_reader(r, source), f"rows {r._fingerprint}") for name, r in rows.items()}
    if not _is_path(source):
        return {}
    return {
        name: (_file_reader(found, documents), _file_key(found, documents))
        for name, found in _find_split_files(Path(source).expanduser()).items()
    }


def _find_split_files(path: Path) -> dict[str, list[Path]]:
    """Split names to files, where a folder's entries (or a path and its neighbours) are called so."""
    if _split_name(path) == "train":
        path = path.parent
    if not path.is_dir():
        return {}
    found: dict[str, list[Path]] = {}
    others = False
    for entry in sorted(path.iterdir()):
        if name := _split_name(entry):
            found.setdefault(name, []).extend(files.list_files(entry) if entry.is_dir() else [entry])
        others = others or (name is None and (entry.is_dir() or files.is_readable_kind(entry)))
    found = {name: entries for name, entries in found.items() if entries}
    if found and "train" not in found and not others:
        raise CorpusError(f"{path} has {' and '.join(found)} but no train split: add one, or name a single file")
    return found if "train" in found and len(found) > 1 else {}


def _split_name(path: Path) -> str | None:
    """The split that a file or folder is called after; `train.py` and `test.py` are a program."""
    named_so = re.fullmatch(r"([a-z]+)(-\d+(-of-\d+)?)?", path.name.split(".")[0].lower())
    is_split = named_so and files.kind_suffix(path) != ".py" and (path.is_dir() or files.is_readable_kind(path))
    return named.SPLIT_NAMES.get(named_so[1]) if named_so and is_split else None


def _file_reader(found: list[Path], documents: DocumentKind, grain: files.Grain = files.COARSE) -> Reader:
    return lambda: ((text, "") for text in files.read_documents(found, documents, grain))


def _article_reader(rows: "Dataset") -> Reader:
    return lambda: ((text, "") for text in named.join_articles(row["text"] for row in rows))


def _row_reader(rows: "Dataset", where: str) -> Reader:
    return lambda: ((text, "") for text in files.read_texts(rows, where))


def _file_key(found: list[Path], documents: str) -> str:
    return f"{documents} {files.file_facts(found)}"
