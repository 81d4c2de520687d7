"""The runs of a climb: by place, by name, and as a table."""

import pytest

import rung
from rung.errors import RecipeError, RunError


def test_a_ladder_has_its_runs_in_order_and_by_name():
    ladder = rung.climb("my.txt", rungs=["ngram", "bigram"])  # made before: found finished
    assert [run.folder.name for run in ladder] == ["bigram", "ngram"]
    assert ladder[0] is ladder["bigram"] and ladder[-1] is ladder["ngram"] and len(ladder) == 2
    assert ladder.best is ladder["ngram"]
    assert ladder.report.exists()
    shown = ladder._repr_html_()
    assert all(f"{run.scores['bits_per_byte']:.3f}" in shown for run in ladder)
    assert repr(ladder).count("\n") == 2
    with pytest.raises(RunError, match="no run 'ngrams' in runs/my: did you mean 'ngram'"):
        ladder["ngrams"]


def test_the_swaps_between_two_rungs_are_a_ladder_too():
    tiny = {"between": ("gpt2", "llama3"), "steps": 1, "seeds": 1, "out": "swaps"}
    with pytest.raises(RecipeError, match="--between has no --minutes: leave it out"):
        rung.climb("my.txt", minutes=3, **tiny)
    with pytest.raises(RecipeError, match="only --between has --steps: leave it out"):
        rung.climb("my.txt", steps=3)
    with pytest.raises(RecipeError, match="no option 'rung'"):
        rung.climb("my.txt", rung="gpt2")
