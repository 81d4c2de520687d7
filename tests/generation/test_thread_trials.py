import pytest

from rung.generation.thread_trials import TRIAL_WAIT, ThreadTrials


class Machine:
    """Steps of a process whose seconds depend on the number of threads, on a clock of its own."""

    def __init__(self, seconds, busy=0.1, most=2):
        self.seconds, self.busy, self.most, self.chosen = seconds, busy, most, [1]
        self.trials = ThreadTrials(lambda: max(0, self.most - self.busy - self.chosen[-1]))

    def work(self, seconds, size=1, first=1):
        """Take steps for so many seconds; return which part of them had more than `first`."""
        self.chosen, passed = [first], 0.0
        while passed < seconds:
            threads = self.trials.choose(size, first, self.most)
            took = size * self.seconds[threads]
            self.trials.record(size, took)
            self.chosen.append(threads)
            passed += took
        return sum(threads > first for threads in self.chosen) / len(self.chosen)


def test_a_core_that_is_free_and_pays_is_used():
    machine = Machine({1: 0.001, 2: 0.0006})
    machine.work(0.1)
    assert machine.work(3) > 0.95


@pytest.mark.parametrize("seconds", [0.00096, 0.001, 0.002])
def test_a_core_that_does_not_pay_is_left_to_others(seconds):
    machine = Machine({1: 0.001, 2: seconds})
    machine.work(1)
    assert 0 < machine.work(3) < 0.05


def test_a_busy_core_is_not_even_tried():
    machine = Machine({1: 0.001, 2: 0.2}, busy=0.9)
    assert machine.work(3) == 0


def test_a_core_that_becomes_busy_is_given_up_and_taken_again_when_it_is_free():
    machine = Machine({1: 0.001, 2: 0.0006})
    machine.work(3)
    machine.seconds, machine.busy = {1: 0.001, 2: 0.05}, 1.0
    machine.work(1.5)  # until the next trial
    assert machine.work(3) == 0
    machine.seconds, machine.busy = {1: 0.001, 2: 0.0006}, 0.1
    machine.work(1.5)
    assert machine.work(3) > 0.95


def test_one_slow_step_ends_a_trial():
    """Cores look free, but the second thread waits for one for a second."""
    machine = Machine({1: 0.001, 2: 1.0})
    machine.work(30)
    assert machine.chosen.count(2) == 1


def test_trials_become_rare():
    machine = Machine({1: 0.001, 2: 0.001})
    machine.work(60)
    assert machine.chosen.count(2) * 0.001 == pytest.approx(60 / TRIAL_WAIT, rel=0.1)


def test_steps_of_different_sizes_are_tried_apart():
    machine = Machine({1: 0.001, 2: 0.0006})
    machine.work(3, size=16)
    machine.seconds = {1: 0.001, 2: 0.002}
    machine.work(3, size=1)
    assert machine.work(1, size=1) < 0.05
    assert machine.trials.choose(16, 1, 2) == machine.trials.choose(18, 1, 2) == 2


def test_a_step_that_grows_goes_on_with_as_many_threads():
    """A text that becomes long is no reason to wait for a core that is busy."""
    machine = Machine({1: 0.001, 2: 0.0006})
    machine.work(3, size=100)
    assert machine.trials.choose(140, 1, 2) == machine.trials.choose(70, 1, 2) == 2
    assert machine.trials.choose(400, 1, 2) == 1


def test_many_cores_are_left_one_by_one_and_by_half():
    """One of sixteen is busy; with fifteen threads none waits for it."""
    seconds = {count: 0.016 / count for count in range(1, 17)} | {16: 0.01}
    machine = Machine(seconds, busy=1.0, most=16)
    machine.work(10, first=16)
    assert machine.chosen.count(15) > len(machine.chosen) / 2


def test_one_thread_has_no_trials():
    machine = Machine({1: 0.001}, most=1)
    machine.work(3)
    assert set(machine.chosen) == {1} and not machine.trials.sizes[0].trials


def test_a_smaller_number_of_threads_is_kept_to():
    machine = Machine({1: 0.001, 2: 0.0006})
    machine.work(3)
    machine.most = 1
    machine.work(3)
    assert set(machine.chosen) == {1}
