"""The run folder: nothing half-written is ever read as whole."""

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading

import pytest
from safetensors import SafetensorError

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


def test_a_failed_save_leaves_the_old_model(tmp_path):
    class Part:
        def __init__(self, fails):
            self.fails = fails

        def save_pretrained(self, folder):
            folder.mkdir(exist_ok=True)
            (folder / "model.safetensors").write_text("new" if not self.fails else "half")
            if self.fails:
                raise OSError(28, "No space left on device")

    runs.save_model(tmp_path, Part(fails=False))
    with pytest.raises(
        RunError, match="No space left on device.*: make room there; what was saved is kept"
    ):
        runs.save_model(tmp_path, Part(fails=True))
    assert (tmp_path / "model.safetensors").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


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


def test_metrics_survive_a_cut_line_and_are_rewound(tmp_path):
    for step in (1, 2, 3):
        runs.append_metrics(tmp_path, {"step": step, "loss": 1.0})
        runs.append_metrics(tmp_path, {"step": step, "bits_per_byte": 2.0})
    with (tmp_path / runs.METRICS).open("a") as file:
        file.write('{"step": 4, "lo')
    samples = "".join(
        f"## Step {step}: 2.000 bits per byte\n\n> ## Step 9\n\n" for step in (1, 2, 3)
    )
    (tmp_path / runs.SAMPLES).write_text(samples + "## Step 4")
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 1, 2, 2, 3, 3]
    runs.rewind(tmp_path, 2, evaluate=False)
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 1, 2, 2]
    assert (tmp_path / runs.SAMPLES).read_text() == samples[: len(samples) * 2 // 3]
    runs.rewind(tmp_path, 2, evaluate=True)
    assert runs.read_metrics(tmp_path)[2:] == [{"step": 2, "loss": 1.0}]
    assert (tmp_path / runs.SAMPLES).read_text() == samples[: len(samples) // 3]
    assert runs.read_metrics(tmp_path / "nowhere") == []


HOLDING = """
import sys, time
from pathlib import Path
from rung import runs
with runs.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_is_held_by_one_process_and_a_kill_lets_go_of_it(tmp_path):
    from rung.recipe import make_recipe
    from rung.workflows.climb import Climb, climb
    from rung.workflows.train import check_unused, execute
    from rung.workflows.tune import Tuning, tune

    folder, recipe = tmp_path / "runs" / "bigram", make_recipe({"rung": "bigram"})
    second = {
        "hold": lambda: runs.hold(folder).__enter__(),
        "check": lambda: check_unused(folder),
        "train": lambda: execute(recipe, folder),
        "tune": lambda: tune(Tuning(base="anything"), folder),
        "climb": lambda: climb(Climb(folder=folder)),
    }
    with holder(folder) as process:
        said = (
            f"bigram is being written by process {process.pid} on {socket.gethostname()}: .* "
            f"another folder with --out"
        )
        for name, begin in second.items():
            with pytest.raises(RunError, match=said):
                pytest.fail(f"{name} began: {begin()}")
        with pytest.raises(RunError, match=said):
            climb(Climb(folder=folder.parent, rungs=("bigram",), corpus=__file__), lambda *_: None)
        assert sorted(path.name for path in folder.iterdir()) == [runs.HOLDER, runs.LOCK]
    check_unused(folder)  # though the lock of the killed one is there
    with runs.hold(folder):
        pass
    assert not list(folder.iterdir())


def test_a_folder_that_is_held_is_made_and_only_a_new_one_goes_again(tmp_path):
    with runs.hold(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert not (tmp_path / "new").exists()
    with runs.hold(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "a").write_text("")
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["a"]


def test_threads_of_one_process_do_not_share_a_folder(tmp_path):
    def second():
        try:
            with runs.hold(tmp_path):
                refused.append(None)
        except RunError as error:
            refused.append(str(error))

    refused = []
    with runs.hold(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    second()
    assert refused[1] is None


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


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        runs.make_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/7"),
        RuntimeError(
            "[enforce fail at inline_container.cc:672] . unexpected pos 1612928 vs 1612816"
        ),
    ],
)
def test_a_full_disk_is_one_clear_line(error, tmp_path):
    with pytest.raises(RunError, match="make room there"), runs.explain_failed_writes(tmp_path):
        raise error
    with pytest.raises(RuntimeError, match="shape"), runs.explain_failed_writes(tmp_path):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_all_that_is_written_has_the_permissions_of_the_umask(umask, prose, tmp_path, monkeypatch):
    from rung.export.export import export
    from rung.recipe import make_recipe
    from rung.report.page import write_report
    from rung.workflows.train import execute
    from rung.workflows.tune import Tuning, tune

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my.txt").write_text(prose)
    talks = [
        [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": "It."}]
        for n in range(20)
    ]
    (tmp_path / "talks.jsonl").write_text(
        "\n".join(json.dumps({"messages": talk}) for talk in talks)
    )
    few = {
        "corpus": str(tmp_path / "my.txt"),
        "steps": 1,
        "train": {"per_device_train_batch_size": 2},
    }
    small = {"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}
    pages = {
        "ngram": {"corpus": few["corpus"], "rung": "ngram", "model": {"order": 2}},
        "rnn": {
            **few,
            "rung": "rnn",
            "model": {"hidden_size": 32, "max_position_embeddings": 64},
            "carry_state": True,
        },
        "llama3": {**few, "rung": "llama3", "model": small},
        "adapted": {**few, "rung": "llama3", "base": str(tmp_path / "made" / "llama3"), "lora": 2},
    }
    made = tmp_path / "made"
    before = os.umask(umask)
    try:
        for name, page in pages.items():
            execute(make_recipe(page), made / name)
        tune(
            Tuning(base=str(made / "llama3"), data=str(tmp_path / "talks.jsonl"), steps=1),
            made / "chat",
        )
        for format, name in (
            ("hf", "llama3"),
            ("gguf", "llama3"),
            ("meta", "llama3"),
            ("arpa", "ngram"),
        ):
            export(str(made / name), format, made / f"{name}.{format}")
        write_report([made / "ngram"], made / "report.html")
    finally:
        os.umask(before)
    found = {
        path: stat.S_IMODE(path.stat().st_mode)
        for top in (made, tmp_path / "cache")
        for path in top.rglob("*")
    }
    assert (
        sum(path.suffix == ".safetensors" for path in found) >= 9
    )  # of runs, checkpoints, an adapter, an export
    assert not {
        path: oct(mode) for path, mode in found.items() if path.is_dir() and mode != 0o777 & ~umask
    }
    files = {
        path: mode
        for path, mode in found.items()
        if path.is_file() and path.suffix not in (".so", ".lock")
    }
    assert not {path: oct(mode) for path, mode in files.items() if mode != 0o666 & ~umask}
