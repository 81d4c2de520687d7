"""What a run will take: said for every kind of rung, of things that are so, and nothing is written."""

import pytest

from rung.errors import RecipeError
from rung.recipe import make_recipe
from rung.recipe.foreseen import foresee

SMALL = {"hidden_size": 64, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def text(tmp_path_factory, prose):
    path = tmp_path_factory.mktemp("foreseen") / "text.txt"
    path.write_text(prose)
    return str(path)


@pytest.mark.parametrize("rung", ["bigram", "ngram", "infini-gram", "rnn", "rnn-attention", "gpt2", "llama3"])
def test_every_rung_says_what_it_takes(rung, text, tmp_path):
    counts = rung in ("bigram", "ngram", "infini-gram")
    page = {"rung": rung, "corpus": text} | ({} if counts else {"steps": 10, "model": SMALL})
    found = foresee(make_recipe(page), tmp_path / "run")
    assert "tokens" in found["training text"] and "GB" in found["disk"]
    assert "GB" in (found["memory"] if counts else found["memory a process"])
    assert counts or int(found["parameters"].replace(",", "")) > 10_000
    assert not list(tmp_path.iterdir())


def test_a_long_count_says_what_its_checkpoints_take(text, tmp_path, monkeypatch):
    recipe = make_recipe({"rung": "ngram", "corpus": text})
    assert "to go on from" not in foresee(recipe, tmp_path / "run")["disk"]
    monkeypatch.setattr("rung.models.ngram.budget.KEPT_SECONDS", 0.0)
    assert "GB for counts to go on from, until the run is complete" in foresee(recipe, tmp_path / "run")["disk"]


def test_counting_says_the_smallest_memory(text, tmp_path):
    pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'rung[scale]'")
    page = {"rung": "ngram", "corpus": text}
    least = foresee(make_recipe(page), tmp_path / "run")["smallest memory"].split()[0]
    enough = str(int(least.removesuffix("MB")) + 200) + "MB"  # this process may grow meanwhile
    found = foresee(make_recipe(page | {"counting": {"memory": enough}}), tmp_path / "run")
    assert enough in found["memory"]
    with pytest.raises(RecipeError, match="MB suffices"):
        foresee(make_recipe(page | {"counting": {"memory": "100MB"}}), tmp_path / "run")
