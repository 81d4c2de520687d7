"""Named corpora: the running interpreter's own text, and data sets of the Hub.

The interpreter's documents come with their top-level package, and splits are cut by package,
because a docstring is often repeated word for word in another module of its package.
"""

import ast
import errno
import glob
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rung import hub
from rung.data.files import fingerprint_files, quiet_datasets
from rung.errors import CorpusError, first_line

EXCLUDED_FOLDERS = {
    *("site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data")
}
WIKITEXT = "Salesforce/wikitext"
# The level-one heading ` = Title = ` opens an article; ` = = Section = = ` does not.
ARTICLE_HEADING = re.compile(r"^ = [^=](?:.*[^=])? = $")
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


def read_python_docs() -> Iterator[tuple[str, str]]:
    """Yield (document, package): the language reference by topic, then each module's docstrings."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name in sorted(topics):
        page = topics[name].strip() + "\n"
        if page not in seen:  # one topic may have two names
            seen.add(page)
            yield page, "topics"
    for path, package, source in read_stdlib_modules():
        page = _page_of_docstrings(source, path, seen)
        if page:
            yield page, package


def read_python_source() -> Iterator[tuple[str, str]]:
    """Yield (document, package): each source file of the standard library, without tests."""
    seen: set[str] = set()
    for _, package, source in read_stdlib_modules():
        if source.strip() and source not in seen:
            seen.add(source)
            yield source, package


def read_stdlib_modules() -> Iterator[tuple[str, str, str]]:
    """Yield (name, package, source) of the standard library's Python modules, without tests."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if EXCLUDED_FOLDERS & set(parts) or "_sysconfigdata" in parts[0]:
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        yield ".".join(p for p in parts if p != "__init__"), _package_of(parts[0]), source


def _package_of(top: str) -> str:
    """Return the package's public name: `decimal` of `_pydecimal`, which documents the same."""
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
    """Yield the module, class or function with its dotted name, then all defined in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield name, node  # type: ignore[misc]  # AsyncFunctionDef is documented alike
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk_definitions(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try):
            yield from walk_definitions(child, name)


def parse_hub_name(name: str, prefix: str = "hf:") -> tuple[str, str | None]:
    """Split `[PREFIX]ORG/NAME[:CONFIG]` into (path, config)."""
    path, _, config = name.removeprefix(prefix).partition(":")
    if not path:
        raise CorpusError(
            f"{prefix + name!r} names no data set: write {prefix}ORG/NAME or "
            f"{prefix}ORG/NAME:CONFIG"
        )
    return path, config or None


def load_hub_splits(
    path: str, config: str | None, stream_revision: str | None = None
) -> dict[str, Any]:
    """Load the data set's splits as train, validation, test; each iterates over rows.

    With `stream_revision`, rows of that revision are read as they arrive. A folder of the same
    layout is read in the place of the Hub: `path` itself, or `$RUNG_HUB_MIRROR/ORG/NAME`. Raises
    `CorpusError` when the data set cannot be loaded.
    """
    local = _find_local_copy(path)
    try:
        with quiet_datasets():
            found = (
                _load_folder(local, config, streams=stream_revision is not None)
                if local
                else _load_from_hub(path, config, stream_revision)
            )
    except CorpusError:
        raise
    # The Hub client and the readers raise many kinds of errors for data that cannot be loaded.
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
    """Return the data set's commit on the Hub, or the sizes and times of a folder's files.

    Raises `CorpusError` when the Hub does not answer.
    """
    if local := _find_local_copy(path):
        return fingerprint_files(sorted(p for p in local.rglob("*") if p.is_file()))
    try:
        return hub.find_dataset_commit(path)
    # No network, no such data set, or a gated one: each has errors of its own.
    except Exception as error:
        raise CorpusError(
            f"the data set {path!r} cannot be streamed: {first_line(error)}; check the name and "
            f"the network, or use a copy under ${hub.MIRROR_VARIABLE}/{path}"
        ) from error


def join_articles(lines: Iterable[str]) -> Iterator[str]:
    """Join WikiText's lines into whole articles, with the newlines of the original file."""
    article: list[str] = []
    for line in lines:
        line = line.rstrip("\n")
        if ARTICLE_HEADING.match(line) and "".join(article).strip():
            yield "".join(article)
            article = []
        article.append((line or " ") + "\n")
    if "".join(article).strip():
        yield "".join(article)


def _find_local_copy(path: str) -> Path | None:
    """Return the folder to read in the place of the Hub; None where there is none.

    Raises `CorpusError` for a folder that does not exist.
    """
    own = Path(path).expanduser()
    found = hub.find_mirror(path) or (own if own.is_dir() else None)
    if found is None and hub.is_local_path(path):
        raise CorpusError(
            f"no such folder: {path!r}, and as a data set of the Hub it would be called ORG/NAME"
        )
    return found


def _load_folder(folder: Path, config: str | None, *, streams: bool) -> dict[str, Any]:
    """Load Parquet files named by split, or else what `datasets` finds in the folder.

    As on the Hub, a configuration is a sub-folder. Raises `CorpusError` when there are several and
    none of them is named.
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
    if any(files.values()):
        found = {name: paths for name, paths in files.items() if paths}
        return dict(datasets.load_dataset("parquet", data_files=found, streaming=streams))
    return dict(datasets.load_dataset(str(folder), config, streaming=streams))


def _load_from_hub(path: str, config: str | None, stream_revision: str | None) -> dict[str, Any]:
    import datasets

    if stream_revision is not None:
        return dict(datasets.load_dataset(path, config, revision=stream_revision, streaming=True))
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not hub.is_reachable(path, "dataset")
    try:
        return dict(datasets.load_dataset(path, config))
    except ConnectionError as error:
        raise CorpusError(
            f"the data set {path!r} could not be loaded: "
            f"{'HF_HUB_OFFLINE is set' if before else 'no network'}; "
            f"use `python-docs`, a file of your own, or a copy under ${hub.MIRROR_VARIABLE}/{path}"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
