"""Documents from Hub data sets: WikiText joined into articles, and any set with a text column."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rung.corpus.files import find_text_column
from rung.errors import CorpusError

WIKITEXT = "Salesforce/wikitext"
# The level-one heading ` = Title = ` opens an article; ` = = Section = = ` does not.
ARTICLE = re.compile(r"^ = [^=].*[^=] = $")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
MIRROR = "RUNG_HUB_MIRROR"


def parse(source: str) -> tuple[str, str | None]:
    """`hf:ORG/NAME[:CONFIG]` as (path, config)."""
    path, _, config = source.removeprefix("hf:").partition(":")
    if not path:
        raise CorpusError(f"{source!r} names no data set: write hf:ORG/NAME or hf:ORG/NAME:CONFIG")
    return path, config or None


def load_splits(path: str, config: str | None) -> dict[str, Any]:
    """The data set's splits under the names train, validation, test; each iterates over rows.

    A folder of the same layout may stand for the Hub: `path` itself, or `$RUNG_HUB_MIRROR/ORG/NAME`.
    Raises `CorpusError` when it cannot be had.
    """
    import datasets

    local = _find_local(path)
    try:
        found = _load_folder(local, config) if local else datasets.load_dataset(path, config)
    except CorpusError:
        raise
    except Exception as error:  # the Hub client raises many kinds; all mean that it is not to be had
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CorpusError(
            f"the data set {path!r} could not be loaded ({why}); "
            f"without a network use `python-docs`, a file of your own, or a copy under ${MIRROR}/{path}"
        ) from error
    splits = {SPLIT_NAMES[name]: rows for name, rows in found.items() if name in SPLIT_NAMES}
    if "train" not in splits:
        raise CorpusError(f"the data set {path!r} has no train split: it has {', '.join(found)}")
    return splits


def read_texts(rows: Any, where: str) -> Iterator[str]:
    """The text column of each row, empty ones left out."""
    column = find_text_column(list(rows.column_names), where)
    for row in rows.select_columns([column]):
        if row[column] and row[column].strip():
            yield row[column]


def join_articles(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's lines as whole articles, with the newlines the original file has."""
    article: list[str] = []
    for line in lines:
        line = line.rstrip("\n")
        if ARTICLE.match(line) and "".join(article).strip():
            yield "".join(article)
            article = []
        article.append((line or " ") + "\n")
    if "".join(article).strip():
        yield "".join(article)


def _find_local(path: str) -> Path | None:
    candidates = [Path(path).expanduser()]
    if mirror := os.environ.get(MIRROR):
        candidates.insert(0, Path(mirror) / path)
    return next((c for c in candidates if c.is_dir()), None)


def _load_folder(folder: Path, config: str | None) -> dict[str, Any]:
    import datasets

    if config and (folder / config).is_dir():
        folder = folder / config
    files: dict[str, list[str]] = {}
    for name in SPLIT_NAMES:
        if shards := sorted(str(p) for p in folder.rglob(f"{name}-*.parquet")):
            files[name] = shards
    if files:
        return dict(datasets.load_dataset("parquet", data_files=files))
    return dict(datasets.load_dataset(str(folder), config))
