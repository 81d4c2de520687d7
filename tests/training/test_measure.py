"""The seconds of a step, measured before training."""

import pytest

import rung.training.measure
import rung.training.trainer
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
    settings = settings_of(steps=None, minutes=1.5)
    assert (
        rung.training.measure.measure_step(make_tiny("rnn"), tokenizer, packed, tmp_path, settings)
        == measured
    )
