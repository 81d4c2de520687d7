"""What a checkpoint says of its run: the keys stay, so runs of older versions can be resumed."""

from rung.training.checkpoints import ResumeState
from rung.training.clock import Clock
from rung.training.schedule import WSDSchedule

FACTS = {
    "step": 4,
    "planned": 14,
    "pace": WSDSchedule(14).state(),
    "rows": 16,
    "seconds": 1.5,
    "clock": {"step": 0.1, "look": 0.2, "evaluation": 0.3, "looked": 0.4, "left": 60.0},
    "evaluate": True,
    "loss": 3.0,
    "logged": 3,
    "bf16": False,
    "threads": 2,
    "made": {"model": {}, "recipe": {}},
}


def test_the_keys_are_those_of_every_version():
    assert ResumeState.from_json(FACTS).to_json() == FACTS
    older = {key: value for key, value in FACTS.items() if key != "threads"}
    assert ResumeState.from_json(older).threads is None


def test_a_schedule_goes_on_with_its_state():
    names = {"asked", "warm_up", "turn", "end", "height", "moved", "passed"}
    schedule = WSDSchedule(100)
    schedule.move_end(60, 80)
    assert schedule.state().keys() == names
    resumed = WSDSchedule.from_state(schedule.state())
    assert [resumed(step) for step in range(80)] == [schedule(step) for step in range(80)]


def test_a_clock_goes_on_with_its_state(monkeypatch):
    monkeypatch.setattr("rung.training.clock.now", lambda: 1000.0)
    clock = Clock(minutes=5)
    clock.resume(7.0, FACTS["clock"])
    assert clock.state() == FACTS["clock"]
    assert (clock.total_seconds(), clock.step_seconds) == (7.0, 0.1)
