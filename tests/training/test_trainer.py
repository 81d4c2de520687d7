"""What a stop at any moment costs: nothing. And what damages a checkpoint, or is none of this run,
is said.
"""

import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.trainer_pt_utils import safe_globals

import rung.training.trainer
from rung import runs
from rung.errors import RunError
from rung.files import find_damage
from rung.training.callbacks import TrainingCallbacks
from rung.training.checkpoints import find_checkpoints, last_checkpoint
from rung.training.settings import TrainSettings
from rung.training.train import train
from tests.conftest import NEURAL

DROPOUT = {
    "rnn": {"dropout": 0.1, "num_hidden_layers": 2},
    "rnn-attention": {"dropout": 0.1},
    "gpt2": {"resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1},
    "llama3": {"attention_dropout": 0.1},
    "swaps": {},
}
# Neither saves nor epochs (27 blocks of 64 in the text, 4 in a step) fall together with lines of
# the metrics.
ARGUMENTS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "bf16": False,
    "logging_steps": 3,
    "save_steps": 4,
    "eval_steps": 8,
}


def draw(model):
    """An evaluation that spends randomness, and is different with each: 2.0, then less, then
    more.
    """
    random.random(), numpy.random.rand(), torch.rand(3)
    weight = next(model.parameters())
    return 2.0 + weight.float().abs().sum().item()


@pytest.fixture(scope="module")
def start(make_tiny, tokenizer, packed):
    """A function that trains a tiny model in a folder, by itself or up to what `act` does at a
    step.
    """

    def start(
        folder,
        rung="gpt2",
        model=None,
        act=lambda step: None,
        evaluate=draw,
        settings=None,
        **arguments,
    ):
        folder.mkdir(exist_ok=True)
        given = TrainSettings(
            arguments={**ARGUMENTS, **arguments}, **{"steps": 14, **(settings or {})}
        )
        model = model or make_tiny(rung, **DROPOUT[rung])
        callbacks = TrainingCallbacks(
            evaluate=evaluate,
            sample=lambda model: "a sample",
            on_progress=lambda now: act(now.done),
        )
        torch.manual_seed(1)
        return train(model, tokenizer, packed, folder, given, callbacks), model

    return start


@pytest.fixture
def run(start, tmp_path):
    """The same in a folder of the test's own, by name."""
    return lambda name="run", **options: start(tmp_path / name, **options)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A function that gives what a run leaves that nobody stopped: its lines, samples and
    weights.
    """
    root = tmp_path_factory.mktemp("whole")

    @functools.cache
    def whole(rung="gpt2", **options):
        folder = root / "-".join((rung, *options))
        return left_by(folder, start(folder, rung, **options)[1])

    return whole


def left_by(folder, model):
    """All that must be the same, to the last bit."""
    weights = {name: weight.numpy().tobytes() for name, weight in model.state_dict().items()}
    return runs.read_metrics(folder), (folder / runs.SAMPLES).read_text(), weights


class GoneError(Exception):
    """The machine went away."""


def stop_at(wanted):
    def act(step):
        if step == wanted:
            raise GoneError

    return act


@pytest.mark.parametrize("rung", NEURAL)
def test_every_rung_goes_on_to_the_last_bit(rung, run, whole, tmp_path):
    for step in (6, 9, 11) if rung == "gpt2" else (9,):
        with pytest.raises(GoneError):
            run("stopped", rung=rung, act=stop_at(step))
    made, model = run("stopped", rung=rung)
    assert made.steps == 14
    assert left_by(tmp_path / "stopped", model) == whole(rung)
    assert [line["step"] for line in whole(rung)[0]] == [3, 6, 8, 9, 12, 14]


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(run, tmp_path, monkeypatch):
    """Which is faster is measured, and may come out otherwise the next time."""
    measured = iter([True])  # asked once
    monkeypatch.setattr("rung.training.arguments.has_fast_bfloat16", lambda device: next(measured))
    monkeypatch.delitem(ARGUMENTS, "bf16")
    with pytest.raises(GoneError):
        run("stopped", act=stop_at(6))
    run("stopped")
    for checkpoint in find_checkpoints(tmp_path / "stopped"):
        assert json.loads((checkpoint / "progress.json").read_text())["bf16"] is True


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "adamw_torch", "lr_scheduler_type": "cosine"},
        # Fmt: skip.
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_steps": 2},
    ],
)
def test_other_optimizers_and_schedules_go_on_too(options, run, whole, tmp_path):
    with pytest.raises(GoneError):
        run("stopped", act=stop_at(11), **options)
    _, model = run("stopped", **options)
    assert left_by(tmp_path / "stopped", model) == whole(**options)


@pytest.mark.parametrize(("evaluation", "checkpoint"), [(1, 8), (2, 14)])
def test_a_checkpoint_is_there_before_its_evaluation(evaluation, checkpoint, run, whole, tmp_path):
    """Stopped in an evaluation, or in the one behind the last step: it is made again, and written
    once.
    """
    times = []

    def break_down(model):
        times.append(0)
        if len(times) == evaluation:
            raise GoneError
        return draw(model)

    with pytest.raises(GoneError):
        run("stopped", evaluate=break_down)
    assert last_checkpoint(tmp_path / "stopped").name == f"checkpoint-{checkpoint}"
    steps = []
    made, model = run("stopped", act=steps.append)
    assert steps == list(range(checkpoint + 1, 15))
    assert made.steps == 14
    assert left_by(tmp_path / "stopped", model) == whole()


def test_ctrl_c_between_two_lines_of_metrics_costs_nothing(run, whole, tmp_path):
    made, _ = run(
        "stopped", act=lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 4 else None
    )
    assert (made.interrupted, made.steps) == (True, 5)
    assert last_checkpoint(tmp_path / "stopped").name == "checkpoint-5"
    _, model = run("stopped")
    assert left_by(tmp_path / "stopped", model) == whole()


def test_the_last_two_and_the_best_are_kept(run, tmp_path):
    scores = iter([1.0, 3.0, 2.0, 2.5])
    _, model = run(evaluate=lambda model: next(scores), eval_steps=4)
    found = find_checkpoints(tmp_path / "run")
    assert [path.name for path in found] == ["checkpoint-14", "checkpoint-12", "checkpoint-4"]
    folder = tmp_path / "run" / runs.CHECKPOINTS
    assert json.loads((folder / "best.json").read_text()) == {"step": 4, "bits_per_byte": 1.0}
    assert {p.name for p in folder.iterdir()} == {"best.json", *(path.name for path in found)}
    best = load_file(found[-1] / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in best.items())
    for path in found:
        assert find_damage(path) is None
        for file in path.iterdir():
            if file.suffix not in (".json", ".jinja", ".safetensors"):
                with safe_globals():  # numpy's, of the random numbers
                    assert torch.load(file, weights_only=True)


def test_one_checkpoint_is_the_last_and_the_best_stays_beside_it(run, tmp_path):
    scores = iter([1.0, 3.0, 2.0, 2.5])
    run(evaluate=lambda model: next(scores), eval_steps=4, save_total_limit=1)
    found = find_checkpoints(tmp_path / "run")
    assert [path.name for path in found] == ["checkpoint-14", "checkpoint-4"]


DAMAGES = {
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-2]), "has .* bytes and had"),
    "a bit flipped": (lambda file: _flip(file), "is not what was written"),
    "gone": (lambda file: file.unlink(), "No such file"),
}


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "progress.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_wherever_it_is(damage, name, made, caplog):
    """Every file of the last checkpoint, three ways: the one before is taken, and the warning names
    both.
    """
    harm, said = DAMAGES[damage]
    path = made / runs.CHECKPOINTS / "checkpoint-12" / name
    kept = path.read_bytes()
    try:
        harm(path)
        assert last_checkpoint(made).name == "checkpoint-8"
    finally:
        path.write_bytes(kept)
    assert last_checkpoint(made).name == "checkpoint-12"
    warning = caplog.messages[0]
    assert "checkpoint-12 is damaged" in warning
    assert "going on from checkpoint-8" in warning
    if name != "manifest.json":
        assert re.search(f"{name}.*{said}", warning)


@pytest.fixture(scope="module")
def made(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.raises(GoneError):
        start(folder, act=stop_at(13))
    return folder


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(made, run, whole, tmp_path):
    shutil.copytree(made, tmp_path / "stopped")
    _flip(tmp_path / "stopped" / runs.CHECKPOINTS / "checkpoint-12" / "model.safetensors")
    steps = []
    _, model = run("stopped", act=steps.append)
    assert steps[0] == 9
    assert left_by(tmp_path / "stopped", model) == whole()
    for path in find_checkpoints(tmp_path / "stopped"):
        assert find_damage(path) is None
        (path / "manifest.json").unlink()
    with pytest.raises(
        RunError, match="every checkpoint in .* is damaged .*: delete it to begin again"
    ):
        run("stopped")


def test_a_checkpoint_of_another_model_or_recipe_is_refused_and_kept(made, start, make_tiny):
    before = {p: p.read_bytes() for p in sorted(made.rglob("*")) if p.is_file()}
    wider = make_tiny("gpt2", **DROPOUT["gpt2"], n_inner=64)
    for changes, said in (
        (
            {"model": wider},
            "checkpoint-12 is of another model: n_inner is None there and 64 here; choose",
        ),
        ({"rung": "llama3"}, "is of another model: .* there and .* here; choose another folder"),
        (
            {"learning_rate": 1e-3},
            "is of another recipe: train.learning_rate is 0.006 there and 0.001 here",
        ),
        ({"settings": {"steps": 20}}, "is of another recipe: steps is 14 there and 20 here"),
        ({"settings": {"seed": 3}}, "is of another recipe: seed is 0 there and 3 here"),
    ):
        with pytest.raises(RunError, match=said):
            start(made, **changes)
    assert {p: p.read_bytes() for p in sorted(made.rglob("*")) if p.is_file()} == before


@pytest.mark.parametrize("room", [200, 30_000])
def test_a_full_disk_is_said_and_the_one_before_is_kept(room, run, whole, tmp_path, limit_files):
    """No file may grow beyond `room` bytes as the second checkpoint is written: the system's own
    refusal.
    """
    with contextlib.ExitStack() as full:

        def fill(step):
            if step == 8:
                full.enter_context(limit_files(room))

        with pytest.raises(
            RunError,
            match="could not be written to .*: make room there, .*; what was saved is kept",
        ):
            run("stopped", act=fill)
    assert [path.name for path in find_checkpoints(tmp_path / "stopped")] == ["checkpoint-4"]
    assert find_damage(last_checkpoint(tmp_path / "stopped")) is None
    assert not (tmp_path / "stopped" / runs.CHECKPOINTS / ".saving").exists()
    _, model = run("stopped")
    assert left_by(tmp_path / "stopped", model) == whole()


@pytest.mark.parametrize("name", ["weight", "loss"])
def test_what_is_no_number_is_never_saved(name, make_tiny, run, tmp_path):
    """Between two lines of the metrics, so that no loss has told of it yet."""
    model = make_tiny("gpt2")

    def spoil(step):
        if step == (8 if name == "weight" else 7):
            with torch.no_grad():
                next(model.parameters())[0, 0] = float("inf")
            nn.init.constant_(model.transformer.ln_f.weight, float("nan"))

    with pytest.raises(
        RunError,
        match=r"the weights are no numbers at step 8 .*train.learning_rate=0.002; the last",
    ):
        run(model=model, act=spoil, logging_steps=50)
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["checkpoint-4"]
    assert all(
        weight.isfinite().all()
        for weight in load_file(last_checkpoint(tmp_path / "run") / "model.safetensors").values()
    )


class Machine:
    """A clock that stands but for the half second that each step takes, in two parts."""

    def __init__(self, monkeypatch):
        self.time = 100.0
        step = rung.training.trainer.RungTrainer.training_step
        monkeypatch.setattr("rung.training.clock.time", self)
        monkeypatch.setattr(
            "rung.training.trainer.RungTrainer.training_step",
            lambda *args: (self.wait(0.25), step(*args))[1],
        )

    def perf_counter(self):
        return self.time

    def wait(self, seconds):
        self.time += seconds


def test_the_minutes_that_remain_are_those_of_the_training_done(run, tmp_path, monkeypatch):
    """Stopped on the way, and taken up an hour later: the hour does not count, the seconds before
    do.
    """
    machine = Machine(monkeypatch)
    settings = {"steps": None, "minutes": 0.5}
    options = {"save_steps": 20, "logging_steps": 5, "eval_steps": 10_000}

    def train_until(last):
        return run(settings=settings, act=stop_at(last), **options)

    with pytest.raises(GoneError):
        train_until(30)
    kept = json.loads((last_checkpoint(tmp_path / "run") / "progress.json").read_text())
    assert (kept["step"], kept["seconds"]) == (20, pytest.approx(10, abs=0.5))
    assert kept["clock"]["left"] == pytest.approx(20, abs=0.5)
    machine.wait(3600)
    before = machine.time
    made, _ = train_until(None)
    assert machine.time - before == pytest.approx(20, abs=1)
    assert made.seconds == pytest.approx(30, abs=1)
    assert made.steps == pytest.approx(60, abs=2)
    rates = [
        line["learning_rate"]
        for line in runs.read_metrics(tmp_path / "run")
        if "learning_rate" in line
    ]
    assert rates[-1] < max(rates) / 5
    again, _ = train_until(None)
    assert again.steps == made.steps
