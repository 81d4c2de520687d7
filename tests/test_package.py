"""`import rung` is all that a notebook needs, and it costs nothing."""

import subprocess
import sys

import pytest

import rung


def test_a_module_is_imported_when_it_is_asked_for():
    code = (
        "import sys, rung; assert 'torch' not in sys.modules; print(rung.runs.RECORD, "
        "rung.models.load.__name__)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["rung.json", "load"]


def test_what_is_there_is_listed_and_what_is_not_is_refused():
    assert {"models", "generation", "evaluation", "report", "__version__"} <= set(dir(rung))
    with pytest.raises(AttributeError, match="module 'rung' has no attribute 'nonsense'"):
        _ = rung.nonsense
