"""Kills and resumes, in earnest: processes ended by SIGKILL, and what they left compared with a run
left alone.
"""

import io
import json
import random
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rung import runs
from rung.cli.main import app
from rung.cli.run_tables import resume_table
from rung.errors import RecipeError, RunError
from rung.recipe import make_recipe
from rung.workflows import verify_resume as verify
from rung.workflows.verify_resume import Kill, Made, Verdict, read_source, verify_resume

PAGE = {
    "rung": "gpt2",
    "tokenizer": {"kind": "bpe", "vocab_size": 300},
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "resid_pdrop": 0.1,
    },
    "steps": 30,
    # No save falls on a logged step, and an epoch ends within.
    "train": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 3,
        "save_steps": 4,
        "eval_steps": 8,
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics))[:12_000]
    path = tmp_path_factory.mktemp("verify") / "my.txt"
    path.write_text(text)
    return make_recipe({**PAGE, "corpus": str(path)})


@pytest.mark.slow
def test_five_kills_lose_nothing(recipe, tmp_path):
    told = []
    verdict = verify_resume(recipe, 5, tmp_path, told.append)
    assert verdict.failure is None
    assert verdict.differences == []
    assert verdict.is_equal
    assert len(verdict.kills) == 5
    assert sum(kill.phase == "saving" for kill in verdict.kills) >= 1
    assert [line["step"] for line in verdict.whole.metrics if "loss" in line] == list(
        range(3, 31, 3)
    )
    assert [line["step"] for line in verdict.whole.metrics if "bits_per_byte" in line] == [
        8,
        16,
        24,
        30,
    ]
    assert {now.run for now in told} == {"uninterrupted", "killed"}
    console = Console(width=100, file=io.StringIO())
    console.print(resume_table(verdict))
    shown = console.file.getvalue()
    assert "killed 5 times" in shown
    assert shown.count("the same") == 4
    assert "≠" not in shown
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
def test_an_end_that_is_over_too_soon_is_not_waited_for(recipe, tmp_path, monkeypatch):
    """The machine was slow when the run was left alone, and is fast now."""
    find_times = verify._Watch.find_times
    monkeypatch.setattr(
        verify._Watch,
        "find_times",
        lambda watch, steps: replace(find_times(watch, steps), ending=4.0),
    )
    monkeypatch.setattr(
        random.Random, "uniform", lambda dice, low, high: high
    )  # behind the last step
    verdict = verify_resume(recipe, 1, tmp_path)
    assert verdict.is_equal
    assert len(verdict.kills) == 1


def test_a_loss_that_differs_in_its_last_bit_is_seen(recipe):
    loss = 2.0
    whole = Made(metrics=[{"step": 1, "loss": loss}], samples="", weights="a", scores={})
    other = replace(whole, metrics=[{"step": 1, "loss": loss * (1 + 2**-52)}])
    kills = [Kill(step=1, phase="saving")]
    good = Verdict(recipe=recipe, kills=kills, whole=whole, resumed=[whole, whole], failure=None)
    bad = replace(good, resumed=[whole, other])
    assert good.is_equal
    assert (bad.is_equal, bad.differences) == (False, ["metrics"])
    assert bad.losses() == [(1, 2.0, 2.0000000000000004)]
    assert not replace(good, resumed=[]).is_equal
    assert not replace(good, failure="it said so").is_equal
    twice = replace(whole, metrics=whole.metrics * 2)
    assert replace(good, resumed=[twice]).differences == ["metrics"]


@pytest.mark.parametrize("same", [True, False])
def test_the_command_tells_by_its_exit_code(same, recipe, tmp_path, monkeypatch):
    def pretend(recipe, kills, folder, on_progress, seed):
        (folder / "evidence").mkdir()
        whole = Made(metrics=[{"step": 1, "loss": 1.5}], samples="", weights="a", scores={})
        other = whole if same else replace(whole, weights="b")
        kill = [Kill(step=1, phase="training")] * kills
        return Verdict(recipe=recipe, kills=kill, whole=whole, resumed=[other], failure=None)

    monkeypatch.setattr(verify, "verify_resume", pretend)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "run").mkdir()
    runs.write_record(
        tmp_path / "run", {"rung": "gpt2", "recipe": {**PAGE, "corpus": recipe.corpus}}
    )
    made = CliRunner().invoke(
        app, ["verify-resume", str(tmp_path / "run"), "--kills", "3", "--json"]
    )
    assert made.exit_code == (0 if same else 1)
    facts = json.loads(made.stdout)
    assert (facts["equal"], facts["kills"], facts["fell"]["training"]) == (same, 3, 3)
    assert facts["differences"] == ([] if same else ["weights"])
    assert bool(list(tmp_path.glob("rung-verify-resume-*/evidence"))) is not same


def test_what_cannot_be_verified_is_said(recipe, tmp_path):
    (tmp_path / "minutes.yaml").write_text("rung: gpt2\nminutes: 5\n")
    assert (
        read_source(tmp_path / "minutes.yaml").steps,
        read_source(tmp_path / "minutes.yaml", 7).steps,
    ) == (60, 7)
    (tmp_path / "counts.yaml").write_text("rung: bigram\n")
    with pytest.raises(RecipeError, match="bigram is fitted by counting, and takes no steps"):
        read_source(tmp_path / "counts.yaml")
    runs.write_record(tmp_path, {"rung": "ngram", "imported": "x.arpa"})
    with pytest.raises(RunError, match="was imported, not trained"):
        read_source(tmp_path)
    with pytest.raises(RunError, match="no such file or folder: nowhere.txt"):
        verify_resume(replace(recipe, corpus="nowhere.txt"), 1, tmp_path)
