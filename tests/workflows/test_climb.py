"""The climb: every rung, one report, and nothing lost when one of them falls."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from rung import runs
from rung.errors import CorpusError, RecipeError, RunError
from rung.ladder import LADDER
from rung.training.checkpoints import find_checkpoints
from rung.training.measure import StepTime
from rung.workflows.climb import REPORT, Climb, climb

FEW = ("bigram", "ngram", "llama3")


class Clock:
    """A clock that stands until it is moved, or moves by a tick when it is looked at."""

    def __init__(self, seconds, tick=0.0):
        self.seconds, self.tick = seconds, tick

    def perf_counter(self):
        self.seconds += self.tick
        return self.seconds


@pytest.fixture
def plan(tmp_path, prose, monkeypatch):
    monkeypatch.setattr("rung.training.measure.MEASURED_SECONDS", 0.2)
    (tmp_path / "text.txt").write_text(prose)
    return Climb(
        corpus=str(tmp_path / "text.txt"), rungs=FEW, minutes=0.03, folder=tmp_path / "out"
    )


def test_every_rung_is_a_run_and_the_report_stands(plan):
    told = set()
    folders = climb(plan, lambda now: told.add((now.run, now.stage)))
    assert [folder.name for folder in folders] == list(FEW)
    records = [runs.read_record(folder) for folder in folders]
    assert len({record["corpus"]["fingerprint"] for record in records}) == 1
    assert len({record["tokenizer"]["fingerprint"] for record in records}) == 1
    assert len({record["scores"]["test"]["bytes"] for record in records}) == 1
    assert ("llama3", "training") in told
    page = (plan.folder / REPORT).read_text()
    assert all(f"{record['scores']['test']['bits_per_byte']:.3f}" in page for record in records)


def test_the_time_is_shared_evenly_and_sizes_match():
    recipes = Climb(minutes=8).recipes()
    assert [recipe.rung for recipe in recipes] == [
        "bigram",
        "ngram",
        "rnn",
        "rnn-attention",
        "gpt2",
        "llama3",
    ]
    assert [recipe.minutes for recipe in recipes] == [None, None, 2, 2, 2, 2]


def test_what_a_rung_leaves_or_overdraws_is_shared_by_those_to_come(plan, monkeypatch):
    """Four minutes for four rungs, by a clock that only they move: each is given a share of what is
    left.
    """
    time, given = Clock(50.0), []
    monkeypatch.setattr("rung.training.clock.time", time)
    taken = iter([20, 0, 100, 30, 70, 10])  # seconds, the first two by rungs that count

    def execute(recipe, folder, on_progress, began):
        given.append(None if began is None else began + 60 * recipe.minutes - time.seconds)
        time.seconds += next(taken)
        raise RunError("is not made")

    monkeypatch.setattr("rung.workflows.climb.execute", execute)
    with pytest.raises(RunError, match="is not made"):
        climb(replace(plan, rungs=LADDER, minutes=4), began=30.0)
    assert given == [None, None, 50, pytest.approx(100 / 3), 35, 15]


def test_rungs_come_in_the_order_of_the_ladder():
    assert [recipe.rung for recipe in Climb(rungs=("llama3", "bigram")).recipes()] == [
        "bigram",
        "llama3",
    ]
    assert [recipe.rung for recipe in Climb(rungs=("infini-gram", "ngram")).recipes()] == [
        "ngram",
        "infini-gram",
    ]
    sized = Climb(rungs=("llama3-nano", "llama3", "gpt2-nano"), minutes=3)
    assert sized.names() == ["gpt2-nano", "llama3-nano", "llama3"]
    assert [(recipe.rung, recipe.minutes) for recipe in sized.recipes()] == [
        ("gpt2", 1),
        ("llama3", 1),
        ("llama3", 1),
    ]


def test_one_that_falls_does_not_take_the_others(plan, monkeypatch):
    from rung.models.ngram.model import NgramForCausalLM

    def fall(*_, **__):
        raise MemoryError("no room for the counts")

    with monkeypatch.context() as patched:
        patched.setattr(NgramForCausalLM, "fit", fall)
        folders = climb(plan)
    assert [runs.is_finished(folder) for folder in folders] == [True, False, True]
    assert runs.read_record(folders[1])["failed"] == "MemoryError: no room for the counts"
    assert "no room for the counts" in (plan.folder / REPORT).read_text()
    climb(plan)  # taken up again: only what is missing is made
    assert all(runs.is_finished(folder) for folder in folders)
    assert "failed" not in runs.read_record(folders[1])


def test_a_climb_is_taken_up_where_it_stopped(plan, monkeypatch):
    import rung.workflows.climb

    folders = climb(plan)
    before = [(folder / runs.RECORD).stat().st_mtime_ns for folder in folders]
    monkeypatch.setattr(rung.workflows.climb, "execute", lambda *_, **__: pytest.fail("made again"))
    climb(plan)
    assert [(folder / runs.RECORD).stat().st_mtime_ns for folder in folders] == before


def test_a_run_that_was_stopped_goes_on_with_the_size_it_had_chosen(plan, monkeypatch):
    """By the clock the dial would choose another one on a machine that is faster now."""
    folder = plan.folder / "llama3"

    def measure(seconds):
        monkeypatch.setattr(
            "rung.workflows.budget.measure_step",
            lambda model, *_: StepTime(seconds * model.num_parameters(), 0.0),
        )

    def stop(progress):
        if progress.stage == "training" and find_checkpoints(folder):
            raise RuntimeError("the machine went away")

    plan = replace(plan, rungs=("llama3",), minutes=0.1)
    monkeypatch.setattr(
        "rung.training.clock.time", Clock(0.0, tick=0.04)
    )  # some steps for everyone
    measure(1e-6)
    with pytest.raises(RunError, match="went away"):
        climb(plan, stop)
    before = runs.read_record(folder)
    measure(1e-9)
    climb(plan)
    after = runs.read_record(folder)
    assert after["recipe"] == before["recipe"]
    assert after["plan"]["parameters"] == before["plan"]["parameters"] == after["parameters"]
    assert after["plan"]["reached"]


def test_a_damaged_record_is_named_and_costs_its_own_run_alone(plan):
    from typer.testing import CliRunner

    from rung.cli.main import app
    from rung.report.summaries import read_summaries

    folders = climb(replace(plan, rungs=("bigram", "ngram", "llama3")))
    for folder in folders[1:]:
        (folder / runs.RECORD).write_text('{"rung": "ll')
    rows = {row.name: row for row in read_summaries(folders)}
    assert rows["bigram"].failed is None and "rung.json is damaged" in rows["ngram"].failed
    listed = CliRunner().invoke(app, ["runs", str(plan.folder), "--json"])
    assert [run["finished"] for run in json.loads(listed.stdout)["runs"]] == [True, False, False]
    made = CliRunner().invoke(
        app, ["report", str(plan.folder), "--out", str(plan.folder / "other.html")]
    )
    assert (
        made.exit_code == 0 and "rung.json is damaged" in (plan.folder / "other.html").read_text()
    )
    climb(replace(plan, rungs=("bigram", "ngram", "llama3")))  # what can be made again at once is
    assert [runs.is_finished(folder) for folder in folders] == [True, True, False]
    assert (folders[2] / runs.RECORD).read_text() == '{"rung": "ll'
    assert "rung.json is damaged" in (plan.folder / REPORT).read_text()


def test_an_interrupted_rung_stops_the_climb(plan, monkeypatch):
    import rung.workflows.climb

    monkeypatch.setattr(rung.workflows.climb, "execute", lambda *_, **__: False)
    with pytest.raises(KeyboardInterrupt):
        climb(plan)


def test_another_climb_in_the_same_folder_is_refused(plan):
    from dataclasses import replace

    climb(replace(plan, rungs=("bigram",)))
    with pytest.raises(
        RunError, match=r"was made with seed 0, not 1: choose another folder with --out"
    ):
        climb(replace(plan, rungs=("bigram",), seed=1))
    with pytest.raises(RunError, match="another tokenizer"):
        climb(replace(plan, rungs=("bigram",), tokenizer={"kind": "char"}))


def test_a_table_never_mixes_texts(plan, prose, monkeypatch):
    """After my.txt was replaced the old table was shown, or, with one run deleted, one of two
    texts.
    """
    import shutil

    plan = replace(plan, rungs=("bigram", "ngram"))
    climb(plan)
    text = Path(plan.corpus)
    text.write_text(prose[::-1])
    with pytest.raises(
        RunError,
        match="bigram was made of another text: text.txt is not what it was then.* --out .*-2",
    ):
        climb(plan)
    shutil.rmtree(plan.folder / "bigram")
    with pytest.raises(RunError, match="ngram was made of another text"):
        climb(plan)
    text.write_text(prose)
    monkeypatch.chdir(text.parent)
    climb(replace(plan, corpus="text.txt"))  # the same text, typed in another way

    shutil.rmtree(plan.folder)

    def change(progress):
        if (progress.run, progress.stage) == ("ngram", "reading"):
            text.write_text(prose[::-1])

    with pytest.raises(RunError, match="the text has changed during the climb"):
        climb(plan, change)


def test_when_all_fall_the_reason_is_said(tmp_path):
    (tmp_path / "tiny.txt").write_text("too little")
    with pytest.raises(Exception, match="too little text to split"):
        climb(
            Climb(corpus=str(tmp_path / "tiny.txt"), rungs=FEW, minutes=1, folder=tmp_path / "out")
        )
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.txt"]


def test_unknown_rungs_and_minutes_are_refused():
    with pytest.raises(RecipeError, match="unknown rung 'nonsense'"):
        Climb(rungs=("nonsense",)).recipes()
    for minutes in (-1, 0, math.nan, math.inf):
        with pytest.raises(
            RecipeError, match=f"minutes is {minutes}: it must be a positive number"
        ):
            Climb(minutes=minutes)


def test_the_record_is_plain_json(plan):
    folders = climb(plan)
    for folder in folders:
        json.loads(
            (folder / runs.RECORD).read_text(), parse_constant=lambda name: pytest.fail(name)
        )


def test_minimal_pairs_are_scored_after_the_climb_and_kept(plan, tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "good,bad,paradigm,phenomenon\nthe list is,is list the,order 1,order\n"
        "a name,name a,order 2,order\n"
    )
    plan = replace(plan, rungs=("bigram", "ngram"), pairs=str(tmp_path / "pairs.csv"))
    told = []
    folders = climb(plan, told.append)
    stages = [progress for progress in told if progress.run == "minimal pairs"]
    assert stages[-1].stage == "done"
    assert max(progress.done for progress in stages) == 8, "four sentences for each run"
    before = [runs.read_record(folder) for folder in folders]
    assert {record["pairs"]["pairs"] for record in before} == {2}
    assert "order" in (plan.folder / REPORT).read_text()

    told.clear()
    climb(plan, told.append)
    assert not any(progress.stage == "scoring" for progress in told), "they are there already"
    (tmp_path / "pairs.csv").write_text("good,bad\nthe list is,is list the\n")
    climb(plan)
    after = [runs.read_record(folder) for folder in folders]
    assert {record["pairs"]["pairs"] for record in after} == {1}
    assert [{**record, "pairs": 0} for record in before] == [
        {**record, "pairs": 0} for record in after
    ]


def test_pairs_that_cannot_be_read_end_the_climb_before_it_begins(plan, tmp_path):
    (tmp_path / "pairs.csv").write_text("good\na\n")
    with pytest.raises(CorpusError, match="one column"):
        climb(replace(plan, pairs=str(tmp_path / "pairs.csv")))
    assert not plan.folder.exists()
