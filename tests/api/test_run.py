"""A run in a notebook: its scores, its metrics, what it writes, and how it is shown."""

import importlib.util
import math
from pathlib import Path

import pytest

import rung
from rung.errors import RecipeError, RunError


def test_a_run_has_its_record_its_model_and_its_scores():
    run = rung.load("small")
    assert run.folder == Path("small") and str(run) == "small"
    assert run.record["rung"] == "gpt2"
    assert run.model.config.n_embd == 32
    assert run.tokenizer.bos_token_id is not None
    assert run.model is run.model
    assert run.scores["low"] < run.scores["bits_per_byte"] < run.scores["high"]
    assert rung.load(run) is run


def test_the_metrics_are_a_data_frame_where_pandas_is(monkeypatch):
    run = rung.load("small")
    frame = run.metrics()
    assert list(frame["step"]) == sorted(frame["step"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    columns = run.metrics()
    assert isinstance(columns, dict) and columns["step"] == list(frame["step"])
    assert {len(column) for column in columns.values()} == {len(frame)}


def test_a_score_is_the_records_or_of_each_token_of_a_text():
    run = rung.load("small")
    assert run.score() == run.scores
    tokens = run.score("The cat")
    assert "".join(token.text for token in tokens) == "The cat"
    assert all(math.isfinite(token.bits) for token in tokens) and tokens[-1].end
    assert run.surprisal("The cat") == tokens


def test_a_run_is_evaluated_as_the_command_evaluates_it():
    found = rung.evaluate("small", "my.txt", split="validation")
    own = rung.load("small").evaluate(split="validation")
    assert found["bits_per_byte"] == own["bits_per_byte"]
    assert found["split"] == own["split"] == "validation"
    with pytest.raises(RecipeError, match="no option 'documentz': did you mean 'documents'"):
        rung.evaluate("small", documentz="lines")
    with pytest.raises(RecipeError, match="--limit is 3, but it is of --tasks"):
        rung.evaluate("small", limit=3)
    with pytest.raises(RecipeError, match="--tasks bring their own text"):
        rung.evaluate("small", "my.txt", tasks=["anything"])


def test_a_prompt_is_continued():
    heard = []
    made = rung.generate("small", "The", max_new_tokens=6, temperature=0, on_text=heard.append)
    assert made.tokens == 6 and "".join(heard) == made.text
    again = rung.load("small").generate("The", max_new_tokens=6, temperature=0, stop=made.text[2:4])
    assert made.text.startswith(again.text) and len(again.text) < len(made.text)
    with pytest.raises(RecipeError, match="did you mean 'temperature'"):
        rung.generate("small", "The", temperatur=0)


def test_a_run_shows_itself_as_a_table_with_its_curve():
    shown = rung.load("small")._repr_html_()
    assert f"{rung.load('small').scores['bits_per_byte']:.3f}" in shown
    assert "<table" in shown and 'class="curve' in shown and "<script" not in shown
    assert "class=curve" not in rung.load("runs/my/bigram")._repr_html_()
    assert repr(rung.load("small")).startswith("Run('small', rung='gpt2', corpus='my.txt', bits_")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run at nowhere"):
        rung.load("nowhere")
    with pytest.raises(RunError, match="is not a run"):
        rung.load(tmp_path)
    assert repr(rung.Run(tmp_path)) == f"Run({str(tmp_path)!r})"
    assert str(tmp_path) in rung.Run(tmp_path)._repr_html_()
