"""Text in, documents out: every source as train, validation and test splits of whole documents.

Where a source has no splits of its own they are cut by a hash of each document, so that adding text
never moves a document from one split to another. Documents are written once to an Arrow file and
memory-mapped from there (`datasets`), so memory does not grow with the corpus.
"""

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rung.corpus import files, named
from rung.corpus.files import DocumentKind
from rung.device import cache_folder
from rung.errors import CorpusError

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset

__all__ = ["CORPORA", "SPLITS", "Corpus", "DocumentKind", "cache_folder", "load_corpus"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05  # of the documents, for validation and again for test
HELD_OUT_PACKAGES = 0.1  # of the packages: there are few of them, and most are small
LAYOUT = 2  # one more whenever the same source is read differently: what was stored before is left

CORPORA = {
    "python-docs": "the running Python's language reference and docstrings, 2 MB (the default)",
    "python-source": "the running Python's standard library source, 11 MB",
    "wikitext-2": "WikiText-2, raw, by article, from the Hub, 13 MB",
    "wikitext-103": "WikiText-103, raw, by article, from the Hub, 540 MB",
    "hf:ORG/NAME[:CONFIG]": "any data set on the Hub with a text column",
    "PATH": "a file, a folder or a glob: .txt .md .rst .py .jsonl .json .csv .parquet, also .gz .zst",
}
PYTHON = {"python-docs": named.read_docs, "python-source": named.read_source}
WIKITEXT_CONFIGS = {"wikitext-2": "wikitext-2-raw-v1", "wikitext-103": "wikitext-103-raw-v1"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Three splits of documents (column `text`), memory-mapped, and a fingerprint of their content."""

    name: str
    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    fingerprint: str

    def split(self, name: str) -> "Dataset":
        """One split by name."""
        if name not in SPLITS:
            raise CorpusError(f"no split {name!r}: choose from {', '.join(SPLITS)}")
        return getattr(self, name)


def load_corpus(source: str = "python-docs", documents: DocumentKind = "paragraphs", *, whole: bool = False) -> Corpus:
    """The corpus that `source` names (see `CORPORA`); `documents` says what a document is in plain text.

    `whole` keeps files that have no splits of their own in one piece, as every split: for scoring.
    Raises `CorpusError` when it cannot be read or is too small to split.
    """
    files.check_document_kind(documents)
    name = _name(source)
    own = _read_named_splits(source, documents)
    if own:
        splits = {split: _store(read, key) for split, (read, key) in own.items()}
        only = splits.get("test") or splits.get("validation")
        if only is not None:
            splits = {"validation": only, "test": only} | splits
        else:
            splits = _cut(splits["train"], source, HELD_OUT)
    else:
        splits = _read_and_cut(source, documents, whole and _is_path(source))
    for split in SPLITS:
        if len(splits[split]) == 0:
            raise CorpusError(f"{source} has no text in its {split} split")
    splits = {split: rows.select_columns(["text"]) for split, rows in splits.items()}
    return Corpus(name=name, fingerprint=_fingerprint(splits), **splits)


Reader = Callable[[], Iterator[tuple[str, str]]]  # (text, the group that must stay on one side)


def _is_path(source: str) -> bool:
    return source not in CORPORA and not source.startswith("hf:")


def _name(source: str) -> str:
    if not _is_path(source):
        return source
    path = Path(source).expanduser().resolve()
    return path.parent.name if _split_name(path) == "train" and _find_split_files(path) else path.name


def _read_and_cut(source: str, documents: DocumentKind, whole: bool) -> dict[str, "Dataset"]:
    if source in PYTHON:
        return _cut(_store(PYTHON[source], f"{source} {sys.version} {sys.prefix}"), source, HELD_OUT_PACKAGES)
    found = files.find_files(source)
    everything = _store(_file_reader(found, documents), _file_key(found, documents))
    if documents == "paragraphs" and not whole and _count_distinct(everything) < len(SPLITS):
        everything = _store(_file_reader(found, documents, files.FINE), _file_key(found, "fine paragraphs"))
    return dict.fromkeys(SPLITS, everything) if whole else _cut(everything, source, HELD_OUT)


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
    """Changes when a file does, even where its old size and time were put back."""
    facts = [(str(p.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p in found for s in (p.stat(),)]
    return json.dumps([documents, facts])


def _store(read: Reader, key: str) -> "Dataset":
    """The reader's documents as a memory-mapped data set with columns `text` and `place`, written once.

    `place`, in [0, 1), is where the document (or its group) falls when splits are cut.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    from rung import __version__

    digest = hashlib.sha256(f"{__version__} {LAYOUT} {key}".encode()).hexdigest()[:16]
    folder = cache_folder() / "corpora"
    path = folder / f"{digest}.arrow"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{digest}.{os.getpid()}"
        features = datasets.Features({"text": datasets.Value("large_string"), "place": datasets.Value("float64")})
        try:
            with ArrowWriter(features=features, path=str(beside)) as writer:
                for text, group in read():
                    writer.write({"text": text, "place": files.hash_unit(group or text)})
                writer.finalize()
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(path))


def _cut(everything: "Dataset", source: str, held_out: float) -> dict[str, "Dataset"]:
    """Train, validation and test by `place`; the documents nearest the border fill a split left empty.

    Documents of one place (copies, or a group) stay on one side.
    """
    import numpy

    if _count_distinct(everything) < len(SPLITS):
        size = sum(len(text.encode("utf-8")) for text in everything["text"])
        raise CorpusError(
            f"{source} is too little text to split into train, validation and test: {len(everything)} "
            f"{'document' if len(everything) == 1 else 'documents'}, {size:,} bytes; give at least 4,000 bytes, "
            "with blank lines between the paragraphs, or try --documents lines"
        )
    place = _places(everything)
    order = numpy.argsort(place, kind="stable")
    places, starts = numpy.unique(place[order], return_index=True)
    test = max(1, min((places < held_out).sum(), len(places) - 2))
    validation = max(test + 1, min((places < 2 * held_out).sum(), len(places) - 1))
    bounds = {"test": (0, starts[test]), "validation": (starts[test], starts[validation])}
    bounds["train"] = (starts[validation], len(place))
    return {name: everything.select(numpy.sort(order[low:high])) for name, (low, high) in bounds.items()}


def _places(everything: "Dataset") -> "numpy.ndarray":
    return everything.with_format("numpy")["place"][:]


def _count_distinct(everything: "Dataset") -> int:
    import numpy

    return len(numpy.unique(_places(everything)))


def _fingerprint(splits: dict[str, "Dataset"]) -> str:
    digest = hashlib.sha256()
    for name in SPLITS:
        digest.update(name.encode())
        for batch in splits[name].iter(batch_size=1000):
            for text in batch["text"]:
                digest.update(hashlib.sha256(text.encode("utf-8")).digest())
    return digest.hexdigest()[:16]
