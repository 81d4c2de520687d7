"""Planning a run from an arguments' words, and going on with one."""

from pathlib import Path

import pytest

import rung
from rung.api.interrupts import Interrupted
from rung.api.options import name_folder
from rung.api.train import estimate
from rung.errors import RecipeError, RunError


@pytest.fixture
def plan(monkeypatch):
    """A function that returns the recipe and the folder that `rung.train` would have executed."""

    def find(*arguments, **settings):
        made = []

        def execute(recipe, folder, on_progress, began):
            made.append((recipe, folder))
            return True

        monkeypatch.setattr("rung.api.train.execute", execute)
        rung.train(*arguments, **settings)
        return made[0]

    return find


def test_settings_are_those_of_a_recipe_of_the_model_and_of_training(plan, tmp_path):
    recipe, folder = plan(
        "llama3", "my.txt", steps=3, tokenizer="char", hidden_size=64, learning_rate=1e-2,
        set={"train.weight_decay": 0.5}, seed=7,
    )  # fmt: skip
    assert (recipe.steps, recipe.seed, recipe.tokenizer) == (3, 7, {"kind": "char"})
    assert recipe.model == {"hidden_size": 64}
    assert recipe.train == {"learning_rate": 1e-2, "weight_decay": 0.5}
    assert folder == Path("runs/my-llama3")
    assert plan("llama3-nano", Path("my.txt"))[1] == Path("runs/my-llama3-nano")
    page = tmp_path / "page.yaml"
    page.write_text("rung: rnn\nsteps: 9\ncorpus: my.txt\nmodel: {cell: gru}\n")
    recipe, _ = plan(recipe=page, minutes=2, out=tmp_path / "out")
    assert (recipe.rung, recipe.steps, recipe.minutes) == ("rnn", None, 2)
    assert plan("gpt2", ["my.txt", "small/rung.json"], steps=1)[0].corpus[1] == "small/rung.json"


def test_what_is_not_known_is_refused():
    for settings, message in (
        ({"hidden_sise": 3}, "did you mean 'hidden_size'"),
        ({"set": {"corpus.name": 3}}, "'corpus' has no keys"),
        ({"set": ["hidden_size=3"]}, "a mapping is wanted"),
        ({"steps": -1}, "steps is -1"),
    ):
        with pytest.raises(RecipeError, match=message):
            rung.train("gpt2", "my.txt", out="none", **settings)
    with pytest.raises(RecipeError, match="a mapping is wanted"):
        rung.tune("small", out="none", set=["hidden_size=3"])
    with pytest.raises(RunError, match="small is not empty"):
        rung.train("gpt2", "my.txt", out="small")
    assert not Path("none").exists()


def test_a_resumed_run_takes_no_other_settings():
    with pytest.raises(RecipeError, match="own recipe: --steps, --set: leave it out"):
        rung.train(out="small", resume=True, steps=3, set={"seed": 1})
    with pytest.raises(RunError, match="small is finished"):
        rung.train(out="small", resume=True)
    with pytest.raises(RunError, match="no run at runs/my-rnn"):
        rung.train("rnn", "my.txt", resume=True)


def test_an_interrupted_run_says_where_its_work_is_and_goes_on():
    def stop(progress):
        if progress.stage == "training" and progress.done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"rung.train\(out='cut', resume=True\)") as stopped:
        rung.train("rnn", "my.txt", out="cut", steps=4, on_progress=stop, hidden_size=16,
                   logging_steps=1, save_steps=1)  # fmt: skip
    assert stopped.value.folder == Path("cut")
    run = rung.train(out="cut", resume=True)
    assert run.record["training"]["steps"] == 4


def test_an_estimate_writes_no_run():
    found = estimate("bigram", "my.txt", out="estimated")
    assert found["rung"] == "bigram" and "memory" in found
    assert not Path("estimated").exists()


def test_a_folder_is_named_after_its_corpus():
    assert name_folder("my.txt", "gpt2") == Path("runs/my-gpt2")
    assert name_folder(["my.txt", "b.txt"], "gpt2") == Path("runs/my-and-1-more-gpt2")
    assert name_folder("hf:some/where:en") == Path("runs/some-where-en")
