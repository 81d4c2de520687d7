"""Test text that stands in the training text: found, named, and taken out of a run's score."""

import json

import pytest

import rung
from rung.data.corpus import load_corpus
from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.score import score_documents
from rung.recipe import make_recipe
from rung.workflows.corpus_check import warn_of_copies
from rung.workflows.train import execute
from rung.workflows.training_text import measure_seen
from tests.conftest import make_text, run_rung

pytest.importorskip("pydivsufsort")

COPY = " ".join(f"w{i}" for i in range(30))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a corpus of which one test document is copied, one nearly, one has a span."""
    folder = tmp_path_factory.mktemp("place")
    train = make_text(40, seed=1).strip().split("\n\n")
    copy, long = sorted(train, key=len)[-2:]
    nearly = long.rsplit(" ", 1)[0] + " changed"
    span = f"then {COPY} end " + "own " * 40
    test = [*make_text(8, seed=2).strip().split("\n\n"), copy, nearly, span]
    rows = {"train": [*train, f"first {COPY} last"], "test": test}
    for split, texts in rows.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "my").mkdir(exist_ok=True)
        (folder / "my" / f"{split}.jsonl").write_text(lines)
    assert execute(make_recipe({"rung": "bigram", "corpus": str(folder / "my")}), folder / "run")
    return folder


def test_copies_are_found_and_taken_out_of_the_score(place):
    pytest.importorskip("datasketch")
    found = rung.check_corpus(place / "my", run=place / "run")
    assert (found["documents"], found["unit"], found["least"]) == (11, "words", 13)
    assert found["duplicates"] == [9]
    assert [each["test_document"] for each in found["near_duplicates"]] == [9, 10]
    assert {9, 10, 11} <= set(found["overlapping"])
    assert COPY in [span["text"] for span in found["longest"]]
    run = rung.load(place / "run")
    texts = [json.loads(line)["text"] for line in (place / "my" / "test.jsonl").open()]
    kept = [t for number, t in enumerate(texts, 1) if number not in found["overlapping"]]
    for key, some in {"all": texts, "without": kept}.items():
        score = score_documents(run.model, run.tokenizer, some)
        assert found["scores"][key]["nats"] == pytest.approx(score.nats, rel=1e-9)
        assert found["scores"][key]["documents"] == len(some)
    assert rung.check_corpus(run=place / "run")["shared"] == found["shared"]


def test_other_text_is_compared_with_what_the_run_was_trained_on(place):
    (place / "other.txt").write_text(f"a {COPY} b\n\n" + make_text(5, seed=9))
    found = rung.check_corpus(place / "other.txt", run=place / "run")
    assert (found["corpus"], found["train"]["corpus"]) == ("other.txt", "my")
    assert found["longest"][0]["text"] == COPY


def test_the_command_fits_80_columns_and_prints_json(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    made = run_rung("corpora", "check", "my", "--run", "run", "--span", "20", cwd=place)
    assert made.returncode == 0, made.stderr
    assert max(map(len, made.stdout.splitlines())) <= 80
    assert "spans of 20 words or more" in made.stdout
    assert "without overlapping ones" in made.stdout
    assert "A model may remember " in made.stdout and " bits per byte lower." in made.stdout
    assert made.stderr.endswith(" rung novelty run\n")
    facts = json.loads(run_rung("corpora", "check", "my", "--json", cwd=place).stdout)
    assert facts["least"] == 13
    listed = json.loads(run_rung("corpora", "--json").stdout)
    assert "python-docs" in listed


def test_without_datasketch_near_duplicates_are_left_out_in_words(place, monkeypatch):
    monkeypatch.setattr("rung.workflows.corpus_check.can_find_near_duplicates", lambda: False)
    made = run_rung("corpora", "check", "my", cwd=place)
    assert "not looked for: pip install 'rung[eval]'" in made.stdout


def test_what_cannot_be_checked_is_one_line(place, tmp_path):
    for name, text in {"empty": "", "one": "A single line.\n", "word": "word"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
        with pytest.raises(CorpusError):
            rung.check_corpus(tmp_path / f"{name}.txt")
    with pytest.raises(RecipeError, match="toy-language has documents of its own"):
        rung.check_corpus("toy-language", documents="lines")
    with pytest.raises(RecipeError, match="--span is 0"):
        rung.check_corpus(place / "my", span=0)
    with pytest.raises(RunError, match="no run at"):
        rung.check_corpus(run=tmp_path / "none")
    settings = {"rung": "bigram", "corpus": str(place / "other.txt"), "held_out": 0}
    (place / "other.txt").write_text(make_text(5, seed=9))
    execute(make_recipe(settings), tmp_path / "whole")
    with pytest.raises(CorpusError, match="no test text"):
        rung.check_corpus(run=tmp_path / "whole")
    made = run_rung("corpora", "check", "-q", tmp_path / "empty.txt")
    assert (made.returncode, made.stderr.count("\n")) == (2, 1)


def test_a_climb_says_in_one_line_when_copies_matter(place, tmp_path):
    """As soon as the text is read. Of the pages of Python next to nothing is copied."""
    made = run_rung("climb", "my", "--rungs", "bigram", "--out", tmp_path / "runs", cwd=place)
    assert made.returncode == 0, made.stderr
    (line,) = [line for line in made.stderr.splitlines() if "corpora check" in line]
    assert "of the test text stands in the training text too" in line
    assert "rung corpora check my` shows where" in line
    (place / "clean.txt").write_text(make_text(60, seed=4))
    assert warn_of_copies(load_corpus(str(place / "clean.txt")), "clean.txt") is None


def test_short_lines_are_no_copies(tmp_path):
    row = "a line of some more words\nend\n\n"
    (tmp_path / "own.txt").write_text(row * 20 + make_text(30, seed=3))
    own = load_corpus(str(tmp_path / "own.txt"))
    texts = [["end\n" * 9], [row + "other words of this line\n"]]
    assert measure_seen(texts, own) == [1.0, 28 / 52]
    assert measure_seen(texts, own, 5) == [0.0, 25 / 52]
