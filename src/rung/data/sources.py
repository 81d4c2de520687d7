"""Corpora that have a name: the running interpreter's own text, and data sets of the Hub.

The interpreter's documents come with the top-level package they belong to, and splits are cut by
package: a docstring is often repeated, word for word, in another module of its own package.
"""

import ast
import errno
import glob
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung import hub
from rung.data.files import fingerprint_files, quiet_datasets
from rung.device import MIRROR, find_mirror
from rung.errors import CorpusError, first_line

LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "pydoc_data",
}
WIKITEXT = "Salesforce/wikitext"
# The level-one heading ` = Title = ` opens an article; ` = = Section = = ` does not.
ARTICLE = re.compile(r"^ = [^=](?:.*[^=])? = $")
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


def read_python_docs() -> Iterator[tuple[str, str]]:
    """(document, package): the language reference by topic, then one page of docstrings a
    module.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name in sorted(topics):
        page = topics[name].strip() + "\n"
        if page not in seen:  # one topic may stand under two names
            seen.add(page)
            yield page, "topics"
    for path, package, source in read_stdlib_modules():
        page = _page_of_docstrings(source, path, seen)
        if page:
            yield page, package


def read_python_source() -> Iterator[tuple[str, str]]:
    """(document, package): the standard library's source, a file a document, tests left out."""
    seen: set[str] = set()
    for _, package, source in read_stdlib_modules():
        if source.strip() and source not in seen:
            seen.add(source)
            yield source, package


def read_stdlib_modules() -> Iterator[tuple[str, str, str]]:
    """(name, package, source) of every module of the standard library that is written in Python,
    tests left out.
    """
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
    """`_pydecimal` and `decimal`, `_py_abc` and `abc` tell the same story: they are one package."""
    return top.lstrip("_").removeprefix("py").lstrip("_") if top.startswith("_") else top


def _page_of_docstrings(source: str, module: str, seen: set[str]) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    sections = []
    for name, node in walk_definitions(tree, module):
        docstring = ast.get_docstring(node)
        if docstring and docstring not in seen:
            seen.add(docstring)
            sections.append(f"{name}\n\n{docstring.strip()}\n")
    return "\n".join(sections)


def walk_definitions(
    node: ast.AST, name: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    """The module, class or function with its dotted name, and all that are defined in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield name, node  # type: ignore[misc]  # AsyncFunctionDef is documented alike
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk_definitions(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try):
            yield from walk_definitions(child, name)


@dataclass(frozen=True)
class Streaming:
    """Rows are to be read as they arrive, of one revision of the data set."""

    revision: str


def parse_hub_name(name: str, prefix: str = "hf:") -> tuple[str, str | None]:
    """`ORG/NAME[:CONFIG]`, perhaps after `prefix`, as (path, config)."""
    path, _, config = name.removeprefix(prefix).partition(":")
    if not path:
        raise CorpusError(
            f"{prefix + name!r} names no data set: write {prefix}ORG/NAME or "
            f"{prefix}ORG/NAME:CONFIG"
        )
    return path, config or None


def load_hub_splits(
    path: str, config: str | None, streaming: Streaming | None = None
) -> dict[str, Any]:
    """The data set's splits under the names train, validation, test; each iterates over rows.

    A folder of the same layout may stand for the Hub: `path` itself, or
    `$RUNG_HUB_MIRROR/ORG/NAME`. Raises `CorpusError` when it cannot be had.
    """
    local = _find_place(path)
    try:
        with quiet_datasets():
            found = (
                _load_folder(local, config, streaming)
                if local
                else _load_from_hub(path, config, streaming)
            )
    except CorpusError:
        raise
    # The Hub client and the readers raise many kinds; all mean that it is not to be had.
    except Exception as error:
        full = isinstance(error, OSError) and (
            error.errno == errno.ENOSPC or "Not enough disk space" in str(error)
        )
        remedy = f"; `stream:{path}` reads it without storing its text" if full else ""
        raise CorpusError(
            f"the data set {path!r} could not be loaded: {first_line(error)}{remedy}"
        ) from error
    splits = {SPLIT_NAMES[name]: rows for name, rows in found.items() if name in SPLIT_NAMES}
    if "train" not in splits:
        raise CorpusError(f"the data set {path!r} has no train split: it has {', '.join(found)}")
    return splits


def find_revision(path: str) -> str:
    """What changes when the data set does: the Hub's own name of its state, or the sizes and times
    of a folder's files.

    Raises `CorpusError` when the Hub does not say.
    """
    if local := _find_place(path):
        return fingerprint_files(sorted(p for p in local.rglob("*") if p.is_file()))
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(path, timeout=hub.PATIENCE).sha)
    except (
        Exception
    ) as error:  # no network, no such data set, a gate: each client has its own kinds
        raise CorpusError(
            f"the data set {path!r} cannot be streamed: {first_line(error)}; check the name and "
            f"the network, or use a "
            f"copy under ${MIRROR}/{path}"
        ) from error


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


def _find_place(path: str) -> Path | None:
    """The folder that stands for the data set; None where the Hub is to be asked.

    Raises `CorpusError` for a folder that is not there.
    """
    own = Path(path).expanduser()
    found = find_mirror(path) or (own if own.is_dir() else None)
    if found is None and hub.is_place(path):
        raise CorpusError(
            f"no such folder: {path!r}, and as a data set of the Hub it would be called ORG/NAME"
        )
    return found


def _load_folder(folder: Path, config: str | None, streaming: Streaming | None) -> dict[str, Any]:
    """Parquet files named by split, in a sub-folder for each configuration as on the Hub; else as
    `datasets` reads it.

    Raises `CorpusError` when there are several configurations and none of them is named.
    """
    import datasets

    shards = {name: sorted(folder.rglob(f"{name}-*.parquet")) for name in SPLIT_NAMES}
    configs = sorted(
        {
            p.relative_to(folder).parts[0]
            for found in shards.values()
            for p in found
            if p.parent != folder
        }
    )
    if configs and config not in configs and (config or len(configs) > 1):
        problem = f"no configuration {config!r}" if config else "several configurations"
        names = ", ".join(configs)
        raise CorpusError(
            f"{folder} has {problem}: choose from {names}, as in hf:{folder}:{configs[0]}"
        )
    inside = folder / (config or configs[0]) if configs else folder
    files = {
        name: [glob.escape(str(p)) for p in found if inside in p.parents]
        for name, found in shards.items()
    }
    as_stream = streaming is not None
    if any(files.values()):
        found = {name: paths for name, paths in files.items() if paths}
        return dict(datasets.load_dataset("parquet", data_files=found, streaming=as_stream))
    return dict(datasets.load_dataset(str(folder), config, streaming=as_stream))


def _load_from_hub(path: str, config: str | None, streaming: Streaming | None) -> dict[str, Any]:
    import datasets

    if streaming:
        return dict(
            datasets.load_dataset(path, config, revision=streaming.revision, streaming=True)
        )
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not hub.answers(path, "dataset")
    try:
        return dict(datasets.load_dataset(path, config))
    except ConnectionError as error:
        raise CorpusError(
            f"the data set {path!r} could not be loaded: "
            f"{'HF_HUB_OFFLINE is set' if before else 'no network'}; "
            f"use `python-docs`, a file of your own, or a copy under ${MIRROR}/{path}"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
