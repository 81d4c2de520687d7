"""`import rung` is all that a notebook needs, and it costs nothing."""

import subprocess
import sys

import pytest

import rung


def run_python(code):
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return made.stdout.split()


def test_importing_rung_imports_nothing_else_of_it_and_no_package():
    code = "import sys; before = set(sys.modules); import rung; print(*set(sys.modules) - before)"
    roots = {name.partition(".")[0] for name in run_python(code)}
    assert roots - set(sys.stdlib_module_names) == {"rung"}
    assert "rung.api" not in run_python(code)


def test_a_module_is_imported_when_it_is_asked_for(run_fork):
    code = (
        "import sys, rung; assert 'rung.models' not in sys.modules; print(rung.runs.RECORD, "
        "rung.models.load.__name__)"
    )
    assert run_fork("-c", code).stdout.split() == ["rung.json", "load"]


def test_the_library_is_listed_beside_the_modules():
    functions = {"check_corpus", "climb", "compare", "evaluate", "generate", "load", "surprisal"}
    functions |= {"compress", "decompress", "novelty", "train", "tune"}
    assert functions | {"Comparison", "Ladder", "Run"} == set(rung.FUNCTIONS)
    assert {*rung.FUNCTIONS, "models", "generation", "evaluation", "report", "__version__"} <= set(
        dir(rung)
    )
    for name in rung.FUNCTIONS:
        assert getattr(rung, name).__name__ == name
        assert getattr(rung, name).__doc__
    with pytest.raises(AttributeError, match="module 'rung' has no attribute 'nonsense'"):
        _ = rung.nonsense
