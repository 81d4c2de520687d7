"""Records: what is damaged is said in one line, and stops no other run."""

import json
import os
import re

import pytest

from rung import runs
from rung.errors import RunError


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rung.json"
    runs.write_record(tmp_path, {"rung": "bigram", "n": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        runs.write_record(tmp_path, {"rung": "bigram", "n": 2})
    assert json.loads(path.read_text())["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["rung.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run"),
        ("{", "is damaged"),
        ("[]", "is not a run's record"),
        ('{"a": 1}', "no key 'rung'"),
    ],
)
def test_what_is_no_run_is_said(content, message, tmp_path):
    if content is not None:
        (tmp_path / runs.RECORD).write_text(content)
    with pytest.raises(RunError, match=message):
        runs.read_record(tmp_path)
    with pytest.raises(RunError, match="no run at"):
        runs.read_record(tmp_path / "nowhere")


def test_runs_are_found_but_not_their_checkpoints(tmp_path):
    for name in (
        "b",
        "a/deep",
        "a",
        "a/checkpoints/x",
        "checkpoints/c",
        "checkpoints/c/checkpoints/y",
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        runs.write_record(tmp_path / name, {"rung": "bigram"})
    found = [str(p.relative_to(tmp_path)) for p in runs.find_runs(tmp_path)]
    assert found == ["a", "a/deep", "b", "checkpoints/c"]
    assert list(runs.find_runs(tmp_path / "checkpoints")) == [tmp_path / "checkpoints" / "c"]
    assert not runs.is_finished(tmp_path / "b")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"scores": 5}, "scores is 5, and must be a mapping"),
        ({"scores": {"test": [1]}}, "scores.test is [1], and must be a mapping"),
        ({"scores": {"test": {"bytes": "x"}}}, "scores.test.bytes is 'x', and must be a number"),
        ({"training": {"steps": "many"}}, "training.steps is 'many', and must be a number"),
        ({"passage": [["a", 1.0], "b"]}, "passage[1] is 'b', and must be a list of 2"),
        ({"corpus": {"notes": [{}]}}, "corpus.notes[0] is {}, and must be a text"),
        ({"recipe": "llama3"}, "recipe is 'llama3', and must be a mapping"),
        ({"rung": None}, "rung is None, and must be a text"),
    ],
)
def test_a_malformed_record_is_one_line_and_stops_no_other(
    part, message, tmp_path, monkeypatch, capsys
):
    from rung.cli.main import main

    score = {"bits_per_byte": 2.5, "low": 2.0, "high": 3.0}
    for name, more in (("good", {}), ("bad", part)):
        (tmp_path / name).mkdir()
        runs.write_record(tmp_path / name, {"rung": "bigram", "scores": {"test": score}} | more)
    with pytest.raises(
        RunError, match=re.escape(f"{runs.RECORD} is damaged ({message}): train the run again")
    ):
        runs.read_record(tmp_path / "bad")
    monkeypatch.setenv("COLUMNS", "200")
    for command in (
        ["runs"],
        ["runs", "--json"],
        ["report", "--out", str(tmp_path / "report.html")],
    ):
        monkeypatch.setattr("sys.argv", ["rung", *command, str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert "report" in command or "2.5" in shown
        assert message.split(",")[0] in (shown if "report" not in command else shown + message)
    assert "2.500" in (tmp_path / "report.html").read_text()
    for command in (["eval"], ["runs", "--json"], ["generate"], ["tune"]):
        monkeypatch.setattr("sys.argv", ["rung", *command, str(tmp_path / "bad")])
        if command[0] == "runs":
            continue
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_the_training_record_of_a_checkpoint_is_its_run_s(tmp_path, monkeypatch):
    """Without it the ruler would score a checkpoint on the text that it was trained on."""
    record = {"rung": "gpt2", "n": 1}
    checkpoint = tmp_path / "run" / runs.CHECKPOINTS / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    runs.write_record(tmp_path / "run", record)
    assert runs.find_record(checkpoint) == {}
    monkeypatch.chdir(checkpoint.parent)
    for folder in (checkpoint, tmp_path / "run", checkpoint.relative_to(checkpoint.parent)):
        assert runs.find_training_record(folder)["n"] == 1
    assert runs.find_training_record(tmp_path) == {}
