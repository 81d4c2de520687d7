"""Corpora that have a name: the running interpreter's own text, and data sets of the Hub.

The interpreter's documents come with the top-level package they belong to, and splits are cut by package: a
docstring is often repeated, word for word, in another module of its own package.
"""

import ast
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rung.corpus.files import find_text_column
from rung.errors import CorpusError

LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data"}
WIKITEXT = "Salesforce/wikitext"
# The level-one heading ` = Title = ` opens an article; ` = = Section = = ` does not.
ARTICLE = re.compile(r"^ = [^=].*[^=] = $")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
MIRROR = "RUNG_HUB_MIRROR"


def read_docs() -> Iterator[tuple[str, str]]:
    """(document, package): the language reference by topic, then one page of docstrings a module."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name in sorted(topics):
        yield topics[name].strip() + "\n", "topics"
    for path, package, source in _read_modules():
        page = _page_of_docstrings(source, path, seen)
        if page:
            yield page, package


def read_source() -> Iterator[tuple[str, str]]:
    """(document, package): the standard library's source, a file a document, tests left out."""
    seen: set[str] = set()
    for _, package, source in _read_modules():
        if source.strip() and source not in seen:
            seen.add(source)
            yield source, package


def _read_modules() -> Iterator[tuple[str, str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if LEFT_OUT & set(parts) or "_sysconfigdata" in parts[0]:
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        yield ".".join(p for p in parts if p != "__init__"), _package(parts[0]), source


def _package(top: str) -> str:
    """`_pydecimal` and `decimal`, `_pyio` and `io` tell the same story: they are one package."""
    return top.lstrip("_").removeprefix("py") if top.startswith("_") else top


def _page_of_docstrings(source: str, module: str, seen: set[str]) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    sections = []
    for name, node in _walk(tree, module):
        docstring = ast.get_docstring(node)
        if docstring and docstring not in seen:
            seen.add(docstring)
            sections.append(f"{name}\n\n{docstring.strip()}\n")
    return "\n".join(sections)


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield name, node  # type: ignore[misc]  # AsyncFunctionDef is documented alike
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try):
            yield from _walk(child, name)


def parse_hub_name(source: str) -> tuple[str, str | None]:
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
