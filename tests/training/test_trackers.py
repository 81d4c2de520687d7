"""Trackers: what they are told is what metrics.jsonl holds, and all of it below the run."""

import importlib.util
import json
import os
import struct
from pathlib import Path

import numpy
import pytest

from rung import runs
from rung.data.packing import PackedTokens
from rung.errors import RecipeError
from rung.training.callbacks import TrainingCallbacks
from rung.training.settings import TrainSettings
from rung.training.trackers import check_trackers, list_trackers, report_into
from rung.training.train import train

CALLBACKS = TrainingCallbacks(
    evaluate=lambda model: 1.5, sample=lambda model: "", on_progress=lambda progress: None
)
COMMAND = (
    "train",
    "rnn",
    "my.txt",
    "--steps",
    "6",
    "--set",
    "hidden_size=16",
    "--set",
    "per_device_train_batch_size=2",
)


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"needs it: pip install {package}"
    )


@pytest.fixture
def run_in(tmp_path, prose, run_fork):
    """A function that trains by the command, with a tracker, in a folder of its own; and the run's
    folder.
    """

    def run(tracker, **environment):
        (tmp_path / "my.txt").write_text(prose[:5000])
        made = run_fork(
            *("rung", *COMMAND, "--out", "named", "--set", f"report_to={tracker}"),
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path.parent / "home"), **environment},
        )
        assert made.returncode == 0, made.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["my.txt", "named"]
        return tmp_path / "named"

    return run


def metrics_of(folder, key):
    return {line["step"]: line[key] for line in runs.read_metrics(folder) if key in line}


def logged_by_tensorboard(folder):
    """What each curve holds, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


@needs("tensorboard")
def test_tensorboard_is_told_what_the_metrics_hold(make_tiny, tokenizer, tmp_path, monkeypatch):
    """Also when the steps are chosen by a clock: the steps that are only timed are told to
    nobody.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rung.training.measure.MEASURED_SECONDS", 0.2)
    packed = PackedTokens(
        tokens=numpy.arange(3, 3000, dtype=numpy.uint16) % len(tokenizer), starts=numpy.array([0])
    )
    arguments = {"per_device_train_batch_size": 2, "bf16": False, "report_to": "tensorboard"}
    settings = TrainSettings(minutes=1 / 60, arguments=arguments)
    (tmp_path / "run").mkdir()
    train(make_tiny("rnn"), tokenizer, packed, tmp_path / "run", settings, CALLBACKS)
    curves = logged_by_tensorboard(tmp_path / "run")
    for tag, key in (
        ("train/loss", "loss"),
        ("eval/bits_per_byte", "bits_per_byte"),
        ("train/grad_norm", "grad_norm"),
    ):
        assert curves[tag] == pytest.approx(metrics_of(tmp_path / "run", key), rel=1e-6)
        assert curves[tag]
    assert [file.parent.name for file in tmp_path.rglob("events*")] == ["tensorboard"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


@needs("wandb")
@pytest.mark.slow
def test_wandb_is_told_what_the_metrics_hold(run_in):
    folder = run_in("wandb", WANDB_MODE="offline")
    (file,) = (folder / "wandb").glob("**/offline-run-*/run-*.wandb")
    started, history = read_wandb(file)
    assert (started.project, started.display_name) == ("rung", "named")
    for tag, key in (("train/loss", "loss"), ("eval/bits_per_byte", "bits_per_byte")):
        found = {row["train/global_step"]: row[tag] for row in history if tag in row}
        assert found == pytest.approx(metrics_of(folder, key))
        assert found


def read_wandb(file):
    """What a run began as, and each line that it was told."""
    from wandb.proto.wandb_internal_pb2 import Record

    started, history = None, []
    for data in read_leveldb_log(file.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "run":
            started = record.run
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
    return started, history


def read_leveldb_log(content, block=2**15):
    """The records of a log: in blocks, each piece behind its checksum, its length and whether it is
    the last.
    """
    whole, at = b"", 7  # the file's own header
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def test_trackio_is_told_what_the_metrics_hold(run_in):
    import sqlite3

    pytest.importorskip(
        "trackio", "0.21", "needs it, and whole: pip install trackio", exc_type=ImportError
    )
    folder = run_in("trackio")
    with sqlite3.connect(folder / "trackio" / "rung.db") as store:
        rows = store.execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in rows} == {"named"}
    history = [json.loads(metrics) for _, metrics in rows]
    for tag, key in (("train/loss", "loss"), ("eval/bits_per_byte", "bits_per_byte")):
        assert {row["train/global_step"]: row[tag] for row in history if tag in row} == metrics_of(
            folder, key
        )


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_missing_is_said_before_anything_is_done(
    name, tmp_path, prose, monkeypatch
):
    from typer.testing import CliRunner

    from rung.cli.main import app

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda asked, *rest: None if asked == name else real(asked, *rest),
    )
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(prose[:5000])
    made = CliRunner().invoke(app, [*COMMAND, "--set", f"report_to=[{name}]"])
    assert made.exit_code == 2
    assert (
        made.stderr.strip()
        == f"rung: train.report_to is {name!r}, which is not installed: pip install {name}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["my.txt"]


def test_a_tracker_that_nobody_knows_is_said(tmp_path):
    with pytest.raises(
        RecipeError, match="train.report_to is 'tensorbord': did you mean 'tensorboard'"
    ):
        list_trackers({"report_to": "tensorbord"})
    assert (
        list_trackers({})
        == list_trackers({"report_to": "none"})
        == list_trackers({"report_to": ["none"]})
        == []
    )
    check_trackers({"report_to": "none"})


def test_a_tracker_that_cannot_be_imported_is_said(tmp_path):
    message = (
        r"is trackio, which does not work here \(No module named 'half'\): pip install --upgrade "
        r"trackio"
    )
    with (
        pytest.raises(RecipeError, match=message),
        report_into(tmp_path, {"report_to": "trackio"}),
    ):
        raise ModuleNotFoundError("No module named 'half'")
    with pytest.raises(ModuleNotFoundError), report_into(tmp_path, {}):
        raise ModuleNotFoundError("No module named 'half'")


def test_a_place_that_the_user_set_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    with report_into(tmp_path, {"report_to": "tensorboard"}):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
