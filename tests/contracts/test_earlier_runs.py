"""Runs that rung 0.1.0 made, before its modules were renamed: they open, score, write and go on.

`runs_of_0_1` has a finished run of every rung and one that was stopped after 11 of 60 steps, all
made of `text.txt` beside them:

    rung train llama3 text.txt --documents paragraphs --steps 4 --set tokenizer.vocab_size=264
        --set hidden_size=16 --set num_hidden_layers=1 --set num_attention_heads=2
        --set max_position_embeddings=32 --set per_device_train_batch_size=4
"""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rung.cli.main import app

BEFORE = Path(__file__).with_name("runs_of_0_1")
FINISHED = sorted(path.name for path in BEFORE.iterdir() if path.is_dir() and path.name != "begun")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shutil.copytree(BEFORE, tmp_path_factory.mktemp("before") / "runs")


def rung(*arguments):
    made = CliRunner().invoke(app, list(map(str, arguments)))
    assert made.exit_code == 0, made.output
    return made.stdout


def test_there_is_a_run_of_every_rung():
    rungs = {"bigram", "ngram", "rnn", "rnn-attention", "gpt2", "llama3"}
    assert set(FINISHED) == rungs | {"infini-gram", "swaps"}


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_scores_what_it_scored(name, folder):
    recorded = json.loads((folder / name / "rung.json").read_text())["scores"]["test"]
    found = json.loads(rung("eval", folder / name, "--json"))
    assert found["bits_per_byte"] == pytest.approx(recorded["bits_per_byte"], abs=1e-4)
    assert set(recorded) <= set(found)
    written = json.loads(rung("generate", folder / name, "The", "--max-new-tokens", 4, "--json"))
    assert written["tokens"] > 0


def test_finished_runs_are_listed_and_reported(folder, tmp_path):
    listed = json.loads(rung("runs", folder, "--json"))
    assert {Path(run["folder"]).name for run in listed["runs"]} == {*FINISHED, "begun"}
    rung("report", *(folder / name for name in FINISHED), "--out", tmp_path / "report.html")
    assert "llama3" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_begun_run_goes_on(folder):
    begun = folder / "begun"
    before = (begun / "metrics.jsonl").read_text()
    rung("train", "--out", begun, "--resume")
    after = (begun / "metrics.jsonl").read_text()
    record = json.loads((begun / "rung.json").read_text())
    assert after.startswith(before)
    assert record["training"]["steps"] == 60
    losses = [line["loss"] for line in map(json.loads, after.splitlines()) if "loss" in line]
    assert losses[-1] < losses[10] < losses[0]
    assert json.loads(rung("eval", begun, "--json"))["bits_per_byte"] < 7
