"""python-qa: questions about Python's standard library, answered by its own documentation.

They ask what an object does, how it is called, and what a module is for, each in several phrasings.
One phrasing of every trained fact is held out (`phrasings`), and some objects altogether
(`objects`).
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rung.chat.template import Conversation
from rung.data.files import hash_to_unit_interval
from rung.data.sources import read_stdlib_modules, walk_definitions

LONGEST_ANSWER = 200  # characters
PHRASINGS = {  # the phrasings of a question for each kind of fact
    "does": (
        "What does `{name}` do?",
        "What is `{name}` for?",
        "Explain `{name}`.",
        "Can you tell me what `{name}` does?",
        "I found `{name}` in some code. What is it?",
    ),
    "takes": (
        "What is the signature of `{name}`?",
        "How do I call `{name}`?",
        "Which arguments does `{name}` take?",
        "Show me the parameters of `{name}`.",
    ),
    "module": (
        "What is the module `{name}` about?",
        "What can I use `{name}` for?",
        "Summarize the module `{name}`.",
        "When would I import `{name}`?",
    ),
}
UNSEEN_SHARE = 0.05  # of the objects, which are held out altogether
VALIDATION_SHARE = 0.03  # of the held-out questions, for validation
SKIPPED_MODULES = {
    "idlelib",
    "lib2to3",
    "turtledemo",
    "distutils",
    "msilib",
    "encodings",
    "ensurepip",
    "antigravity",
    "this",
    "ntpath",
}
ALIASES = {"posixpath": "os.path", "posix": "os", "builtins": ""}
COMPILED = ("builtins", "math", "itertools", "time", "sys", "posix", "zlib", "unicodedata", "gc")


@dataclass(frozen=True)
class Fact:
    """A fact about an object: the object's name, the kind of fact, and the answer."""

    name: str
    kind: str
    answer: str


def make_python_qa() -> dict[str, list[Conversation]]:
    """Make the splits train and validation, and the test sets `phrasings` and `objects`."""
    parts: dict[str, list[Conversation]] = {
        name: [] for name in ("train", "validation", "phrasings", "objects")
    }
    # Of an object that is defined twice, the last definition counts.
    facts = {(fact.name, fact.kind): fact for fact in _find_facts()}
    for fact in facts.values():
        ways = PHRASINGS[fact.kind]
        asked = [_ask(fact, way) for way in ways]
        if hash_to_unit_interval(fact.name) < UNSEEN_SHARE:
            parts["objects"].append(asked[int(hash_to_unit_interval(f"way {fact}") * len(ways))])
            continue
        held_out = asked.pop(int(hash_to_unit_interval(f"way {fact}") * len(ways)))
        parts[
            "validation"
            if hash_to_unit_interval(f"watched {fact}") < VALIDATION_SHARE
            else "phrasings"
        ].append(held_out)
        parts["train"] += asked
    return parts


def _ask(fact: Fact, way: str) -> Conversation:
    question = way.format(name=fact.name)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": fact.answer}]


def _find_facts() -> Iterator[Fact]:
    """Yield the facts of public modules, functions and classes, also of some written in C."""
    for path, _, source in read_stdlib_modules():
        if _is_public(path) and not SKIPPED_MODULES & set(path.split(".")):
            yield from _read_module(path, source)
    for name in COMPILED:
        yield from _read_compiled(name)


def _is_public(path: str) -> bool:
    return not any(part.startswith("_") for part in path.split("."))


def _read_module(path: str, source: str) -> Iterator[Fact]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    module = ALIASES.get(path, path)
    for name, node in walk_definitions(tree, module):
        if not _is_public(name.removeprefix(module)) and name != module:
            continue
        answer = _first_paragraph(ast.get_docstring(node) or "")
        if answer:
            yield Fact(name, "module" if node is tree else "does", answer)
        if isinstance(node, ast.FunctionDef) and answer:
            yield Fact(name, "takes", f"{node.name}({ast.unparse(node.args)})")


def _read_compiled(module: str) -> Iterator[Fact]:
    """Yield the facts of a module in C; the interpreter may have been built without it."""
    try:
        found = vars(importlib.import_module(module))
    except ImportError:
        return
    prefix = ALIASES.get(module, module)
    for name, value in sorted(found.items()):
        if (
            name.startswith("_")
            or not callable(value)
            or getattr(value, "__module__", "") != module
        ):
            continue
        path = f"{prefix}.{name}".lstrip(".")
        if answer := _first_paragraph(inspect.getdoc(value) or ""):
            yield Fact(path, "does", answer)
        try:
            yield Fact(path, "takes", f"{name}{inspect.signature(value)}")
        except (ValueError, TypeError):  # not all have a signature
            continue


def _first_paragraph(docstring: str) -> str:
    """Return the first paragraph of prose on one line, or its first sentence where it is long."""
    for paragraph in docstring.split("\n\n"):
        line = " ".join(paragraph.split())
        if not re.match(r"[\w.]+\(|[^\w\s]|.*->", line) and " " in line:
            return line if len(line) <= LONGEST_ANSWER else _first_sentence(line)
    return ""


def _first_sentence(line: str) -> str:
    end = re.search(r"[.:](?= )", line[:LONGEST_ANSWER])
    return line[: end.start()] + "." if end else ""
