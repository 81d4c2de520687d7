"""What a run writes beside what people wrote, end to end."""

import json
import re

import pytest

import rung
from rung import runs
from rung.data.corpus import load_corpus
from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.novelty import measure_novelty
from rung.recipe import make_recipe
from rung.report.page import write_report
from rung.workflows.train import execute
from tests.conftest import make_text, run_rung

pytest.importorskip("pydivsufsort")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text and an n-gram run of it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "my.txt").write_text(make_text(80, seed=1))
    recipe = {"rung": "ngram", "corpus": str(folder / "my.txt"), "tokenizer": {"kind": "char"}}
    assert execute(make_recipe(recipe), folder / "run")
    return folder


def test_new_ngrams_of_what_a_run_writes_are_counted_by_hand(place, monkeypatch):
    """Every figure from the texts that the run wrote; greedy text is the same again."""
    written = []

    def watch(texts, index):
        written.append(list(texts))
        return measure_novelty(texts, index)

    monkeypatch.setattr("rung.workflows.novelty.measure_novelty", watch)
    settings = [(0.3, 1), (1.5, 1), (1, 0.5)]
    found = rung.novelty(place / "run", settings=settings, texts=6, tokens=80, seed=3)
    assert runs.read_record(place / "run")["novelty"]["settings"] == found["settings"]
    corpus = load_corpus(str(place / "my.txt"))
    train = [text.split() for text in corpus.train["text"]]
    human, *made = written
    tests = list(corpus.test["text"])
    # Whole words of test documents, after their first six.
    for text in human:
        assert any(" ".join(text.split()) in " ".join(t.split()[6:]) for t in tests)
    for texts, row in zip([human, *made], [found["human"], *found["settings"]], strict=True):
        for n in (1, 2, 3, 5):
            known = {tuple(t[i : i + n]) for t in train for i in range(len(t))}
            grams = [
                tuple(w[i : i + n]) for w in map(str.split, texts) for i in range(len(w) - n + 1)
            ]
            assert row["new"][str(n)] == pytest.approx(
                sum(g not in known for g in grams) / len(grams)
            )
    assert len(made[0]) == 6
    shares = [row["new_share"] for row in found["settings"]]
    assert shares[0] < shares[1]  # hotter is newer
    distances = [row["distance"] for row in found["settings"]]
    assert found["nearest"] == distances.index(min(distances))


def test_the_command_fits_80_columns_and_the_report_reads_the_record(place, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--texts", "3", "--tokens", "40", "--sampling", "0.5,1", "--sampling", "0.8,0.95")
    made = run_rung("novelty", "run", *words, cwd=place)
    assert made.returncode == 0, made.stderr
    assert max(map(len, made.stdout.splitlines())) <= 80
    assert "Nearest to human text: temperature" in made.stdout
    assert "Of 100 spans of 5 words that it writes so, " in " ".join(made.stdout.split())
    assert re.search(r" rung generate --temperature 0\.\d --top-p \S+ run\b", made.stderr, re.M)
    facts = json.loads(run_rung("novelty", "run", *words, "--json", cwd=place).stdout)
    write_report([place / "run"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Is it its own?" in page
    assert f"{facts['human']['new']['3']:.0%}" in page


def test_what_cannot_be_measured_is_one_line(place, tmp_path):
    for options, message in {
        ("--sampling", "hot"): "--sampling is 'hot': write a temperature and a top-p",
        ("--sampling", "1,2"): "top_p is 2.0: it must be in [0, 1]",
    }.items():
        made = run_rung("novelty", "-q", place / "run", *options)
        assert (made.returncode, made.stderr.count("\n")) == (2, 1)
        assert message in made.stderr
    with pytest.raises(RecipeError, match="no option 'heat'"):
        rung.novelty(place / "run", heat=1)
    with pytest.raises(RunError, match="no run at"):
        rung.novelty(tmp_path / "none")
    recipe = {"rung": "bigram", "corpus": str(place / "my.txt"), "held_out": 0}
    execute(make_recipe(recipe), tmp_path / "whole")
    with pytest.raises(CorpusError, match="no test text"):
        rung.novelty(tmp_path / "whole")
    run = rung.load(tmp_path / "whole")
    run.model.save_pretrained(tmp_path / "plain")
    run.tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(RunError, match="was not trained by rung"):
        rung.novelty(tmp_path / "plain")
    (tmp_path / "gone.txt").write_text(make_text(20, seed=2))
    execute(make_recipe({"rung": "bigram", "corpus": str(tmp_path / "gone.txt")}), tmp_path / "r")
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(CorpusError, match="is not at"):
        rung.novelty(tmp_path / "r")
