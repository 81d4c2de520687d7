"""Text that is on every machine: the running interpreter's own documentation and source.

Documents come with the top-level package they belong to, and splits are cut by package: a docstring
is often repeated, word for word, in another module of its own package.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data"}


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
