"""The seconds of a step, measured before training."""

import pytest

import rung.training.measure
import rung.training.trainer
from rung.training.clock import Clock
from tests.training.conftest import Machine, settings_of


@pytest.mark.parametrize(("first", "measured"), [(3.0, 1.0), (9.0, 9.0)])
def test_the_step_that_is_measured_is_a_warm_one(
    first, measured, make_tiny, tokenizer, packed, tmp_path, monkeypatch
):
    """Of a few seconds for measuring: neither what comes before the first step, nor that one,
    unless it took long.
    """
    machine = Machine(monkeypatch, lambda time: first if time < first else 1.0)
    build = rung.training.trainer.RungTrainer.__init__

    def build_slowly(*args):
        build(*args)
        machine.wait(1000.0)  # until all processes are there

    monkeypatch.setattr("rung.training.trainer.RungTrainer.__init__", build_slowly)
    machine.wait(-1000.0)
    assert measure(make_tiny, tokenizer, packed, tmp_path).seconds == measured


@pytest.mark.parametrize(
    ("spread", "steps"),
    [(0.0, 2 + 4), (0.02, 2 + 4), (0.2, 2 + 12), (0.9, 15)],
)
def test_even_steps_are_measured_for_a_shorter_time(
    spread, steps, make_tiny, tokenizer, packed, tmp_path, monkeypatch
):
    """On a quiet machine a few say it; beside other processes all of 1.5 seconds are taken, and
    the seconds of a step are the same.
    """
    taken = []

    def pace(time):
        taken.append(time)
        return 0.1 * (1 + spread * (-1) ** len(taken) / 2)

    Machine(monkeypatch, pace)
    found = measure(make_tiny, tokenizer, packed, tmp_path)
    assert len(taken) == pytest.approx(steps, abs=1)
    assert found.seconds == pytest.approx(0.1, rel=0.05 * (1 + spread))
    assert found.measuring == pytest.approx(0.1 * len(taken), rel=0.1)


@pytest.mark.parametrize(("look", "times"), [(0.5, 1), (2.0, 2), (4.0, 1)])
def test_a_short_evaluation_is_measured_once(look, times, make_tiny, monkeypatch):
    """Of 90 seconds: half a one is not worth a second look, and 4 are too many for it."""
    machine = Machine(monkeypatch, 1.0, look)
    clock = Clock(minutes=1.5)
    rung.training.measure.measure_evaluation(make_tiny("rnn"), machine.callbacks(), clock)
    assert len(machine.evaluated) == times
    assert clock.evaluation_seconds == look


def measure(make_tiny, tokenizer, packed, folder):
    settings = settings_of(steps=None, minutes=1.5)
    return rung.training.measure.measure_step(make_tiny("rnn"), tokenizer, packed, folder, settings)
