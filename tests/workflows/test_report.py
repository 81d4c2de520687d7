"""Reports of runs and of other models beside them."""

import json
import re

import pytest

from rung.recipe import make_recipe
from rung.workflows.train import execute
from tests.conftest import make_text, run_rung
from tests.models.foreign import build


@pytest.fixture(scope="module")
def ground(tokenizer, tmp_path_factory):
    """A folder with a run, and two models of other kinds, of which one has no end of text."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text.txt").write_text(make_text(40))
    recipe = make_recipe({"rung": "bigram", "corpus": str(folder / "text.txt")})
    execute(recipe, folder / "bigram")
    for name, kind in (("neox", "gpt_neox"), ("endless", "mamba")):
        build(kind, tokenizer).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    path = folder / "endless" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    return folder


def test_a_model_stands_beside_a_run_on_the_same_test_text(ground):
    made = run_rung("report", "bigram", "neox", cwd=ground)
    assert made.returncode == 0, made.stderr
    page = (ground / "report.html").read_text()
    (table,) = re.findall("<table.*?</table>", page, re.DOTALL)
    rows = dict(re.findall(r'<th scope="row">(.*?)</th>.*?data-head="bits per byte">(.*?)<', table))
    assert list(rows)[:2] == ["bigram", "gpt_neox"]
    record = json.loads((ground / "bigram" / "rung.json").read_text())
    assert float(rows["bigram"]) == round(record["scores"]["test"]["bits_per_byte"], 3)
    assert not (ground / "neox" / "rung.json").exists()


def test_a_score_without_ends_has_a_table_of_its_own(ground):
    made = run_rung("report", "bigram", "neox", "endless", "--out", "ends.html", cwd=ground)
    assert made.returncode == 0, made.stderr
    page = (ground / "ends.html").read_text()
    first, second = re.findall("<table.*?</table>", page, re.DOTALL)
    assert "gpt_neox" in first
    assert "mamba" in second
    assert ("ends not scored" in first, "ends not scored" in second) == (False, True)
    assert "no end-of-text token" in page


def test_a_model_alone_has_no_text_to_be_scored_on(ground):
    made = run_rung("report", "neox", cwd=ground)
    assert made.returncode == 2
    assert "name a run that was scored beside it" in " ".join(made.stderr.split())


def test_models_are_compared_with_runs_but_not_with_and_without_ends(ground):
    made = run_rung("compare", "bigram", "neox", "--json", cwd=ground)
    assert made.returncode == 0, made.stderr
    assert [model["rung"] for model in json.loads(made.stdout)["models"]] == ["bigram", "gpt_neox"]
    made = run_rung("compare", "bigram", "endless", cwd=ground)
    assert made.returncode == 2
    assert "has no end-of-text token" in " ".join(made.stderr.split())
