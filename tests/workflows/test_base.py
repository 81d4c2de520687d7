"""Runs that teach another: what the record says, and what is refused."""

import json
import shutil

import pytest

from rung import runs
from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RunError
from rung.models import load
from rung.workflows.run_folder import read_begun
from rung.workflows.train import execute
from tests.conftest import SENTENCES, make_text, shake
from tests.conftest import run_rung as rung

SMALL = (
    *("--steps", 2, "--tokenizer", "one", "--set", "hidden_size=16"),
    *("--set", "max_position_embeddings=64", "--set", "num_hidden_layers=1"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_tiny, tokenizer):
    """A folder with a text, a GPT-2, a model of other tokens, and a Llama that the GPT-2 taught."""
    place = tmp_path_factory.mktemp("taught")
    (place / "my.txt").write_text(make_text(20))
    for name, model, own in (
        ("one", make_tiny("gpt2"), tokenizer),
        ("words", make_tiny("rnn"), build_tokenizer("char", SENTENCES, None)),
    ):
        model.save_pretrained(place / name)
        own.save_pretrained(place / name)
    words = ("--set", "save_steps=1", "--set", "teacher=one,./one", "--out", "two")
    made = rung("train", "llama3", "my.txt", *SMALL, *words, cwd=place)
    assert made.returncode == 0, made.stderr
    return place


def test_the_record_names_the_teachers_and_their_weights(place):
    record = runs.read_record(place / "two")
    first, second = record["teachers"]["fingerprint"].split()
    assert first == second
    assert record["teachers"]["path"] == record["recipe"]["teacher"] == "one,./one"
    config = json.loads((place / "two" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_what_it_will_take_counts_the_teachers(place):
    words = ("--set", "teacher=one", "--dry-run", "--out", "dry")
    made = rung("train", "llama3", "my.txt", *SMALL, *words, cwd=place)
    assert made.returncode == 0, made.stderr
    assert "teachers" in made.stdout
    assert "GB of weights, in memory beside" in made.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("teacher=none,one",), "but none stands alone: name only runs"),
        (("teacher=one,gone",), "teacher is 'one,gone': 'gone' is no folder of a run"),
        (("teacher=my.txt",), "'my.txt' is no folder of a run"),
        (("teacher=empty",), "empty is not a run"),
        (("teacher=words",), "teacher words has other tokens"),
        (("teacher=one", "max_position_embeddings=65"), "set max_position_embeddings=64"),
    ],
)
def test_a_teacher_that_will_not_do_is_one_line(place, words, said):
    (place / "empty").mkdir(exist_ok=True)
    settings = [word for setting in words for word in ("--set", setting)]
    made = rung("train", "llama3", "my.txt", *SMALL, *settings, "--out", "new", cwd=place)
    assert (made.returncode, made.stdout) == (2, "")
    assert said in made.stderr.splitlines()[-1]
    assert not (place / "new").exists()


def test_a_run_goes_on_where_its_teachers_moved_and_not_where_they_changed(
    place, tmp_path, monkeypatch
):
    shutil.copytree(place / "two", tmp_path / "two")
    record = runs.read_record(tmp_path / "two")
    del record["scores"]  # as if it had been stopped
    runs.write_record(tmp_path / "two", record)
    monkeypatch.chdir(tmp_path)
    recipe = read_begun(tmp_path / "two")
    assert recipe.teacher == f"{place / 'one'},{place / 'one'}"
    shutil.copytree(place / "one", tmp_path / "one")
    model, _ = load(tmp_path / "one")
    shake(model).save_pretrained(tmp_path / "one")
    changed = read_begun(tmp_path / "two")
    object.__setattr__(changed, "teacher", f"{tmp_path / 'one'},{tmp_path / 'one'}")
    with pytest.raises(RunError, match="a teacher has changed since .*two was begun"):
        execute(changed, tmp_path / "two")
    assert execute(recipe, tmp_path / "two")
