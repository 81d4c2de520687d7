"""Training: it learns, it stops on time, it resumes, and what it is told wrongly it says."""

import math
import os
import signal
from dataclasses import replace

import numpy
import pytest
import torch
from torch import nn

from rung import runs
from rung.data.packing import PackedTokens
from rung.errors import RecipeError, RunError
from rung.evaluation.score import score_documents
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.models.rnn import CELLS
from rung.training.argument_checks import check_arguments
from rung.training.callbacks import TrainingCallbacks
from rung.training.checkpoints import last_checkpoint
from rung.training.optimizer import Muon, orthogonalize
from rung.training.settings import TrainSettings
from rung.training.train import train
from tests.conftest import NEURAL, SENTENCES
from tests.training.conftest import Listener, Machine, settings_of


@pytest.mark.conditions
@pytest.mark.parametrize("name", NEURAL)
def test_every_trained_rung_learns(name, make_tiny, tokenizer, packed, tmp_path):
    model = make_tiny(name)
    trained = train(
        model, tokenizer, packed, tmp_path, settings_of(steps=40), Listener().callbacks()
    )
    losses = [line["loss"] for line in runs.read_metrics(tmp_path) if "loss" in line]
    assert trained.steps == 40
    assert not trained.interrupted
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), abs=0.3)
    assert losses[-1] < losses[0] - 1.5


def test_metrics_and_samples_are_written(make_tiny, tokenizer, packed, tmp_path):
    listener = Listener()
    train(make_tiny("llama3"), tokenizer, packed, tmp_path, settings_of(), listener.callbacks())
    lines = runs.read_metrics(tmp_path)
    assert listener.steps == list(range(1, 21))
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
    assert [line["step"] for line in lines if "bits_per_byte" in line] == [4, 8, 12, 16, 20]
    blocks = math.ceil((len(packed) - 1) / 64)  # the last one has some padding, which is no token
    assert all(
        line["tokens"] == round(line["step"] * 4 * (len(packed) - 1) / blocks) for line in lines
    )
    samples = (tmp_path / runs.SAMPLES).read_text()
    assert samples.count("## Step") == 5
    assert "> ## not a heading" in samples


@pytest.mark.parametrize("lora", [None, 2])
def test_the_weights_of_the_best_evaluation_are_kept(lora, make_tiny, tokenizer, packed, tmp_path):
    """A model that gets worse after the fourth of five evaluations is the one of then; ties go to
    the later.
    """
    if lora:
        pytest.importorskip("peft", reason="needs PEFT: pip install 'rung[lora]'")
    told, seen = iter([3.0, 2.0, 2.5, 2.0, 2.2]), []

    def evaluate(model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(told)

    model = make_tiny("llama3")
    callbacks = replace(Listener().callbacks(), evaluate=evaluate)
    trained = train(model, tokenizer, packed, tmp_path, settings_of(lora=lora), callbacks)
    assert (trained.steps, trained.kept_step) == (20, 16)
    assert all(torch.equal(seen[3][name], tensor) for name, tensor in model.state_dict().items())
    assert not all(
        torch.equal(seen[4][name], tensor) for name, tensor in model.state_dict().items()
    )


def test_a_damaged_best_checkpoint_costs_a_warning(make_tiny, tokenizer, packed, tmp_path, caplog):
    def worse(model):
        for weights in (tmp_path / runs.CHECKPOINTS).glob("checkpoint-4/model.safetensors"):
            weights.write_bytes(weights.read_bytes()[:-1])
        return next(told)

    told = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    callbacks = replace(Listener().callbacks(), evaluate=worse)
    assert (
        train(make_tiny("rnn"), tokenizer, packed, tmp_path, settings_of(), callbacks).kept_step
        == 20
    )
    assert "the best checkpoint, step 4, is damaged" in caplog.text


def test_ctrl_c_saves_and_stops(make_tiny, tokenizer, packed, tmp_path):
    listener = Listener(at=3, act=lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    trained = train(
        make_tiny("rnn"), tokenizer, packed, tmp_path, settings_of(), listener.callbacks()
    )
    assert trained.interrupted
    assert trained.steps == 4
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def timed(make_tiny, tokenizer, packed, tmp_path):
    """A function that trains for a minute of a machine's own time."""

    def timed(machine, minutes=1.0, arguments=None, scoring=0.0, **changes):
        settings = settings_of(steps=None, minutes=minutes, arguments=arguments or {}, **changes)
        return train(
            make_tiny("rnn"),
            tokenizer,
            packed,
            tmp_path,
            settings,
            machine.callbacks(scoring_cost=scoring),
        )

    return timed


def find_rates(folder):
    return [line["learning_rate"] for line in runs.read_metrics(folder) if "learning_rate" in line]


MACHINES = {
    "steady": 0.5,
    "slow from the beginning": lambda time: 0.1 if time < 3 else 2.0,
    "busy in the middle": lambda time: 0.3 if time < 25 else 1.5,
    "busy for a while": lambda time: 2.0 if 10 < time < 35 else 0.3,
    "quiet in the middle": lambda time: 1.5 if time < 35 else 0.3,
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_clock_ends_training_and_the_rate_has_fallen_by_then(
    name, timed, tmp_path, monkeypatch
):
    machine = Machine(monkeypatch, MACHINES[name], look=0.2)
    trained = timed(machine)
    assert 56 < machine.time < 61
    assert trained.steps > 20
    rates = find_rates(tmp_path)
    assert rates[-1] < max(rates) / 5
    assert 3 <= len(machine.evaluated) - 1 <= 8


@pytest.mark.parametrize("kind", ["warmup_stable_decay", "cosine"])
@pytest.mark.parametrize("epochs", [20, 1000])
def test_minutes_and_epochs_end_training_whichever_end_first(
    epochs, kind, timed, tmp_path, monkeypatch
):
    machine = Machine(monkeypatch, 0.5, look=0.2)
    arguments = {"num_train_epochs": epochs, "logging_steps": 1, "lr_scheduler_type": kind}
    trained = timed(machine, arguments=arguments)
    rates = find_rates(tmp_path)
    assert rates[-1] < max(rates) / 5
    if epochs == 20:
        assert trained.steps == len(rates) == 40
        assert machine.time < 30
    else:
        assert 56 < machine.time < 61


def test_what_follows_training_is_left_time_for(timed, monkeypatch):
    """Scoring that is twenty evaluations' work, from a beginning ten seconds ago."""
    machine = Machine(monkeypatch, 0.5, look=1.0)
    machine.time = 10.0
    timed(machine, scoring=20.0, began=0.0)
    assert 48 < machine.time < 51


def test_training_has_its_least_part_however_late_it_is(timed, monkeypatch):
    machine = Machine(monkeypatch, 0.5)
    machine.time = 100.0
    assert 25 < timed(machine, began=0.0).steps < 35
    assert 115 <= machine.time < 118


def test_slow_looks_become_fewer_and_the_last_is_taken(timed, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, 0.2, look=5.0)
    trained = timed(machine)
    assert len(machine.evaluated) == 3  # to see what one takes, on the way, and the last
    assert machine.time < 62
    assert trained.steps > 200
    assert last_checkpoint(tmp_path).name == f"checkpoint-{trained.steps}"


def test_a_machine_on_which_a_step_takes_a_minute_takes_few(timed, monkeypatch):
    machine = Machine(monkeypatch, 30.0, look=20.0)
    trained = timed(machine)
    assert trained.steps == 1
    assert machine.time == 70  # a look, a step, the last look


def test_first_steps_that_are_slow_are_no_measure(timed, tmp_path, monkeypatch):
    """Such as where something is compiled first."""
    machine = Machine(monkeypatch, lambda time: 8.0 if time < 8 else 0.3, look=0.2)
    assert timed(machine).steps > 130
    assert 56 < machine.time < 61
    assert find_rates(tmp_path)[-1] < max(find_rates(tmp_path)) / 5


@pytest.mark.parametrize("name", ["slow from the beginning", "busy in the middle"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_another_schedule_too_ends_where_the_clock_does(kind, name, timed, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, MACHINES[name], look=0.2)
    trained = timed(
        machine, arguments={"lr_scheduler_type": kind, "logging_steps": 1, "warmup_steps": 4}
    )
    assert 56 < machine.time < 61
    rates = find_rates(tmp_path)
    assert rates[-1] < max(rates) / 5
    assert [rate / 6e-3 for rate in rates[:4]] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert trained.steps == len(rates)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_schedule_of_minutes_is_transformers_own_stretched(monkeypatch, timed, tmp_path):
    """On a steady machine it is the curve of a run whose steps were given."""
    steps = timed(
        Machine(monkeypatch, 1.0), arguments={"lr_scheduler_type": "cosine", "logging_steps": 1}
    ).steps
    rates = find_rates(tmp_path)
    wanted = [6e-3 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    assert rates[10:] == pytest.approx(wanted[10:], abs=3e-4)


@pytest.mark.parametrize("kind", ["constant", "inverse_sqrt", "reduce_lr_on_plateau"])
def test_a_schedule_that_knows_no_end_is_left_as_it_is(kind, timed, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, 1.0)
    timed(machine, arguments={"lr_scheduler_type": kind, "logging_steps": 1, "warmup_steps": 2})
    assert 56 < machine.time < 61
    assert min(find_rates(tmp_path)[2:]) > 1e-3


@pytest.mark.parametrize(("asked", "steps"), [(10, 10), (0.25, 10), (0, 0), (None, 2)])
def test_the_steps_of_the_warm_up_are_those_asked_for(
    asked, steps, make_tiny, tokenizer, packed, tmp_path
):
    arguments = {"logging_steps": 1} | ({} if asked is None else {"warmup_steps": asked})
    settings = settings_of(steps=40, arguments=arguments)
    train(make_tiny("rnn"), tokenizer, packed, tmp_path, settings, Listener().callbacks())
    rates = find_rates(tmp_path)
    assert sum(rate < 6e-3 for rate in rates[:20]) == steps
    assert max(rates) == 6e-3


def test_training_that_is_never_evaluated_keeps_its_last_weights(
    make_tiny, tokenizer, packed, tmp_path
):
    settings = settings_of(arguments={"eval_strategy": "no"})
    trained = train(make_tiny("rnn"), tokenizer, packed, tmp_path, settings, Listener().callbacks())
    assert (trained.steps, trained.kept_step) == (20, 20)
    assert not [line for line in runs.read_metrics(tmp_path) if "bits_per_byte" in line]


def test_arguments_of_an_optimizer_are_its_own(make_tiny, tokenizer, packed, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        Muon, "__init__", lambda *_, **__: pytest.fail("another optimizer was asked for")
    )
    real = torch.optim.SGD.__init__
    monkeypatch.setattr(
        torch.optim.SGD,
        "__init__",
        lambda self, *args, **options: seen.update(options) or real(self, *args, **options),
    )
    arguments = {"optim": "sgd", "optim_args": "momentum=0.5", "learning_rate": 1e-3}
    train(
        make_tiny("rnn"),
        tokenizer,
        packed,
        tmp_path,
        settings_of(steps=2, arguments=arguments),
        Listener().callbacks(),
    )
    assert (seen["lr"], seen["momentum"]) == (1e-3, 0.5)


def test_epochs_set_the_steps(make_tiny, tokenizer, packed, tmp_path):
    settings = settings_of(
        steps=None, arguments={"num_train_epochs": 2, "per_device_train_batch_size": 8}
    )
    trained = train(make_tiny("rnn"), tokenizer, packed, tmp_path, settings, Listener().callbacks())
    blocks = math.ceil((len(packed) - 1) / 256)
    assert trained.steps == 2 * math.ceil(blocks / 8)


def test_padding_is_no_token(make_tiny, tokenizer, tmp_path):
    """A text of 45 tokens in a block of 64: every row of a step has 44 to learn from."""
    short = PackedTokens(tokens=numpy.arange(45, dtype=numpy.uint16), starts=numpy.array([0]))
    trained = train(
        make_tiny("llama3"),
        tokenizer,
        short,
        tmp_path,
        settings_of(steps=3),
        Listener().callbacks(),
    )
    assert trained.tokens == 3 * 4 * 44


def test_a_loss_that_is_no_number_ends_the_run(make_tiny, tokenizer, packed, tmp_path):
    model = make_tiny("gpt2")
    nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(RunError, match="the loss is nan at step 1 .*train.learning_rate=0.002"):
        train(model, tokenizer, packed, tmp_path, settings_of(), Listener().callbacks())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rat": 1}, "train.learning_rat: .* did you mean 'learning_rate'"),
        ({"output_dir": "x"}, "train.output_dir cannot be set"),
        ({"optim": "sgdd"}, "train.optim is 'sgdd': did you mean 'sgd'"),
        ({"eval_strategy": "epoch"}, "train.eval_strategy is 'epoch': choose from steps, no"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, make_tiny, tokenizer, packed, tmp_path):
    with pytest.raises(RecipeError, match=message):
        train(
            make_tiny("rnn"),
            tokenizer,
            packed,
            tmp_path,
            settings_of(arguments=arguments),
            Listener().callbacks(),
        )


def test_any_optimizer_of_the_trainer_can_be_had(make_tiny, tokenizer, packed, tmp_path):
    settings = settings_of(steps=2, arguments={"optim": "adafactor", "learning_rate": 1e-2})
    assert (
        train(make_tiny("rnn"), tokenizer, packed, tmp_path, settings, Listener().callbacks()).steps
        == 2
    )


def test_check_arguments_knows_the_trainers_own():
    check_arguments({"learning_rate": 1e-3, "report_to": "tensorboard", "optim": "muon"})


@pytest.mark.conditions
@pytest.mark.parametrize("bf16", [True, False])
def test_muon_computes_in_the_precision_of_the_run(
    bf16, make_tiny, tokenizer, packed, tmp_path, monkeypatch
):
    """Each process would measure for itself, and two that find otherwise cannot share a matrix."""
    seen = set()
    monkeypatch.setattr(
        "rung.training.optimizer.orthogonalize",
        lambda matrices: seen.add(matrices.dtype) or orthogonalize(matrices),
    )
    settings = settings_of(steps=1, arguments={"bf16": bf16})
    train(make_tiny("gpt2"), tokenizer, packed, tmp_path, settings, Listener().callbacks())
    assert seen == {torch.bfloat16 if bf16 else torch.float32}


@pytest.mark.conditions
@pytest.mark.parametrize(
    ("rung", "fields"),
    [(rung, {"cell": cell}) for rung in ("rnn", "rnn-attention") for cell in CELLS]
    + [(rung, {}) for rung in ("gpt2", "llama3", "swaps")],
)
def test_a_rung_is_scored_and_sampled_while_it_trains_in_bfloat16(
    rung, fields, make_tiny, tokenizer, packed, tmp_path
):
    """Where bfloat16 is slow, no rung takes it by itself, and only this test would see it fail."""
    model, found = make_tiny(rung, **fields), []

    def evaluate(model):
        found.append(score_documents(model, tokenizer, SENTENCES).bits_per_byte)
        return found[-1]

    callbacks = TrainingCallbacks(
        evaluate=evaluate,
        sample=lambda model: generate(model, tokenizer, "the cat", Sampling(max_new_tokens=5)).text,
        on_progress=lambda _: None,
    )
    settings = settings_of(steps=2, arguments={"bf16": True, "eval_steps": 1})
    train(model, tokenizer, packed, tmp_path, settings, callbacks)
    assert len(found) == 2
    plain = score_documents(model.eval(), tokenizer, SENTENCES).bits_per_byte
    assert min(found) == pytest.approx(plain, rel=0.01)


def test_float16_gives_way_where_there_is_no_gpu(
    make_tiny, tokenizer, packed, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("rung.training.arguments.choose_device", lambda: torch.device("cpu"))
    settings = TrainSettings(steps=1, arguments={"per_device_train_batch_size": 4, "fp16": True})
    with caplog.at_level("WARNING"):
        assert (
            train(
                make_tiny("gpt2"), tokenizer, packed, tmp_path, settings, Listener().callbacks()
            ).steps
            == 1
        )
    assert "train.fp16 needs a GPU" in caplog.text
