"""Every benchmark has its output beside it, and every mention of one leads to it."""

import ast
import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*/*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in SCRIPTS]
# In words, as `device.describe` says it.
MACHINE = re.compile(r"\d+ cores? of \w+|\d+ x NVIDIA \w+")
NOT_RECORDED = {
    "benchmarks/device/gpu.py": "It needs an H100 or H200, and none was at hand yet.",
}
NO_MACHINE = {
    "benchmarks/evaluation/chapter.txt": "The two formulas give the same figures on every machine.",
    "benchmarks/models/induction.txt": (
        "It was recorded before the script said so, and has no speeds."
    ),
}
MENTION = re.compile(r"\b(?:benchmarks|docs/results)/[\w./-]+\.(?:py|txt|svg|jsonl|md|yaml)\b")


def read_outputs():
    """All recorded outputs by path."""
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "benchmarks").glob("*/*.txt"))
    }


def read_pages():
    """Every text of the repository that may mention a benchmark, by path."""
    folders = ("docs", "src", "tests", "recipes", "benchmarks", "tools")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    found += [
        path
        for path in ROOT.iterdir()
        if path.suffix in {".md", ".toml"} or path.name == "Makefile"
    ]
    suffixes = {"", ".md", ".py", ".txt", ".toml", ".yaml", ".c"}
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in found
        if path.is_file() and path.suffix in suffixes
    }


def test_every_script_lies_in_the_room_that_it_measures():
    assert SCRIPTS
    assert not list((ROOT / "benchmarks").glob("*.py"))
    for path in SCRIPTS:
        room = ROOT / "src" / "rung" / path.parent.name
        assert room.is_dir() or room.with_suffix(".py").is_file(), path


def test_every_script_has_its_output_beside_it():
    outputs = read_outputs()
    missing = {name for name in NAMES if name.removesuffix(".py") + ".txt" not in outputs}
    assert missing == set(NOT_RECORDED)


def test_every_output_is_a_scripts():
    for name in read_outputs():
        stem = name.removesuffix(".txt")
        # train-float32.txt is what train.py says on another machine, and those of -avx2 what their
        # scripts say held to AVX2.
        assert {stem + ".py", stem.split("-")[0] + ".py"} & set(NAMES), name


def test_every_output_names_the_machine():
    outputs = read_outputs()
    assert {name for name, text in outputs.items() if not MACHINE.search(text)} == set(NO_MACHINE)


@pytest.mark.parametrize("name", NAMES)
def test_every_script_says_what_it_measures_and_its_command(name):
    docstring = ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))) or ""
    first, _, rest = docstring.partition("\n")
    assert first.endswith("."), first
    assert f"python {name}" in rest
    assert f"> {name.removesuffix('.py')}.txt" in rest


@pytest.mark.parametrize("name", NAMES)
def test_what_a_script_imports_from_rung_is_there(name):
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rung":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_bench_runs_every_script_once_and_keeps_what_it_says():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    for name in ("TEXT", "SHAKESPEARE", "WIKITEXT"):
        environment.pop(name, None)
    dry = subprocess.run(
        ["make", "--dry-run", "bench"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    ran = re.findall(r"python (benchmarks/\S+\.py).*\| tee (\S+\.txt)", dry.stdout)
    assert [script for script, _ in ran] == NAMES
    assert [output for _, output in ran] == [name.removesuffix(".py") + ".txt" for name in NAMES]


def test_every_path_that_is_mentioned_is_there():
    lost = [
        f"{page}: {mention}"
        for page, text in read_pages().items()
        for mention in MENTION.findall(text)
        if "/ROOM/NAME." not in mention  # a pattern, and no path
        and mention.removesuffix(".txt") + ".py" not in NOT_RECORDED
        and not (ROOT / mention).exists()
    ]
    assert not lost, "\n".join(lost)
