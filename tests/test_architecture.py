"""The house: imports point strictly down, rooms stay small, functions fit on a screen."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "rung"
FLOORS = (
    (
        "errors",
        "ladder",
        "progress",
        "full_disk",
        "files",
        "hub",
        "distributed",
        "device",
        "model_files",
        "compiler",
    ),
    ("data", "runs"),
    ("models",),
    ("training", "evaluation", "generation"),
    ("recipe", "chat", "report"),
    ("workflows", "serve", "export"),
    ("api",),
    ("cli", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))
GROUND = FLOORS[0]  # its rooms may import those that stand before them in this order
LADDER = (
    "sizes",
    "lookup",
    "exact_probabilities",
    "fused",
    "fused_attention",
    "fused_layers",
    "config_checks",
    "forward_options",
    "base",
    "kv_cache",
    "initialization",
    "attention",
    "bigram",
    "ngram",
    "rnn",
    "rnn_attention",
    "relays",
    "gpt2",
    "induction",
    "llama3",
    "transformer_start",
    "swaps",
    "registry",
    "starts",
    "tensor_checks",
    "architectures",
    "foreign",
    "load_options",
    "weight_checks",
    "loading",
    "__init__",
)

RUNG_FILES = ("bigram", "model", "rnn", "rnn_attention", "gpt2", "llama3")


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path):
    """The modules of rung that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "rung"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (
            name.split(".") for name in names if name.split(".")[0] == "rung" and "." in name
        )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_strictly_down(path):
    here = room_of(path)
    if here == "__init__":
        assert not list(imports_of(path))
        return
    for parts in imports_of(path):
        there = parts[1]
        if there in ("__version__", here):
            continue
        assert there in FLOOR, f"{path.name} imports {'.'.join(parts)}, which is no room"
        if here in GROUND and there in GROUND:
            assert GROUND.index(there) < GROUND.index(here), (
                f"{here} imports {there}, which stands after it"
            )
        elif (here, there) != ("__main__", "cli"):
            assert FLOOR[there] < FLOOR[here], (
                f"{here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})"
            )


def test_the_table_of_floors_is_the_one_that_is_held():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert [
        (int(number), tuple(re.findall("`(.*?)`", rooms))) for number, rooms in reversed(rows)
    ] == [*enumerate(FLOORS)]


def test_a_rung_imports_only_rungs_below_it():
    for path in (SOURCE / "models").rglob("*.py"):
        here = path.relative_to(SOURCE / "models").parts[0].removesuffix(".py")
        for parts in imports_of(path):
            if parts[1] == "models" and len(parts) > 2 and parts[2] != here:
                assert LADDER.index(parts[2]) < LADDER.index(here), f"{here} imports {parts[2]}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            statements = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
            lines = node.end_lineno - node.body[0].lineno + 1
            assert lines <= 50, f"{path.name}: {node.name} is too long"
            assert statements <= 35, f"{path.name}: {node.name} has {statements} statements"


def test_rooms_are_small():
    for path in FILES:
        limit = 250 if path.stem in RUNG_FILES else 300 if room_of(path) == "models" else 400
        assert len(path.read_text().splitlines()) <= limit, f"{path} has grown out of its room"


def test_an_init_only_re_exports():
    for path in SOURCE.glob("*/**/__init__.py"):
        for node in ast.parse(path.read_text()).body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            assert is_docstring or is_list or isinstance(node, ast.ImportFrom), (
                f"{path} has logic: {ast.unparse(node)}"
            )


def test_every_module_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_no_model_is_a_subclass_of_another_rung():
    for path in (SOURCE / "models").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("ForCausalLM", "HeadModel")):
                assert {ast.unparse(base) for base in node.bases} <= {
                    "CausalModel",
                    "StatefulModel",
                    "CountingModel",
                }


def test_every_room_has_its_tests():
    tests = Path(__file__).parent
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    missing = [
        room
        for room in sorted(rooms)
        if not ((tests / f"test_{room}.py").exists() or (tests / room).is_dir())
    ]
    assert not missing


# The functions of `import rung` have the verbs' names, as what they call in the rooms below.
SHARED_NAMES = {"climb", "generate", "load", "train", "tune"}


def names_of(path):
    """The public functions, classes and constants that a file defines."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("TypeVar("):
            targets = (name for target in node.targets for name in ast.walk(target))
            yield from (name.id for name in targets if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_no_public_name_is_defined_in_two_rooms():
    homes = {}
    for path in FILES:
        for name in names_of(path):
            if not name.startswith("_") and name != "logger":
                homes.setdefault(name, set()).add(room_of(path))
    shared = {name: rooms for name, rooms in homes.items() if len(rooms) > 1}
    assert set(shared) <= SHARED_NAMES, {n: shared[n] for n in set(shared) - SHARED_NAMES}
