"""The schedule of the learning rate: its formula, and an end that moves."""

import pytest

from rung.training.schedule import WSDSchedule


def test_the_schedule_rises_stays_and_falls():
    assert WSDSchedule(1)(1) == 0  # a run of one step looks one ahead
    schedule = WSDSchedule(100)
    rates = [schedule(step) for step in range(101)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:50] == [1.0] * 45
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[100] == 0
    schedule.move_end(40, 60)
    assert (schedule(39), schedule(50), schedule(60)) == (1.0, 0.5, 0.0)
    schedule.move_end(50, 80)  # half way down it goes on from there
    assert (schedule(50), schedule(65), schedule(80)) == (0.5, 0.25, 0.0)
    schedule.move_end(50, 200)  # before half of the way it is level again
    assert (schedule(50), schedule(100), schedule(150), schedule(200)) == (1.0, 1.0, 0.5, 0.0)
    schedule = WSDSchedule(1000)
    # A machine that is ten times slower warms up in a tenth of the steps.
    schedule.move_end(10, 100)
    assert (schedule(10), schedule(75)) == (1.0, 0.5)


def test_the_schedule_is_its_formula_at_every_step():
    assert [WSDSchedule(2)(step) for step in range(4)] == [0.5, 1.0, 0.0, 0.0]
    schedule = WSDSchedule(100)
    assert [schedule(step) for step in range(7)] == [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0, 1.0]
    late = (49, 50, 75, 99, 100, 110)
    assert [schedule(step) for step in late] == [1.0, 1.0, 0.5, 0.02, 0.0, 0.0]
    schedule.move_end(75, 150)  # its half is now, half way down
    assert [schedule(step) for step in (75, 90, 150)] == [0.5, 0.4, 0.0]
    schedule = WSDSchedule(100)
    schedule.move_end(3, 5)  # within the warm-up, which was then too long
    assert [schedule(step) for step in (3, 4, 5)] == [1.0, 0.5, 0.0]
    for warm_up, steps in ((10.0, 10), (1.0, 1), (0.25, 25), (0.001, 1), (0.0, 0)):
        assert WSDSchedule(100, warm_up).warm_up == steps


def test_the_share_of_a_run_grows_to_one_wherever_its_end_is_moved():
    schedule = WSDSchedule(100)
    assert [schedule.share_done(step) for step in (0, 3, 5, 24, 100, 200)] == [
        0.0,
        0.0,
        0.0,
        0.2,
        1.0,
        1.0,
    ]
    assert WSDSchedule(100, 0.0).share_done(25) == 0.25
    factor = schedule.stretch(lambda at: at)
    assert [factor(step) for step in (0, 2, 5, 24)] == [0.0, 0.4, 0.0, 2000.0]
    schedule.move_end(43, 81)
    assert [schedule.share_done(step) for step in (43, 62, 81, 90)] == pytest.approx(
        [0.4, 0.7, 1.0, 1.0]
    )
    schedule.move_end(62, 62)
    assert schedule.share_done(62) == pytest.approx(0.7)
