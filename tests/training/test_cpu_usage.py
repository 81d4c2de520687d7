"""The share of the CPU that a run got, as Linux counts it."""

import types

import pytest

from rung.training import cpu_usage, recorder
from rung.training.callbacks import NO_CALLBACKS
from rung.training.clock import Clock
from rung.training.cpu_usage import CpuMeter, is_busy
from rung.training.recorder import Recorder


@pytest.fixture
def threads(tmp_path, monkeypatch):
    """A function that sets, of each thread, for how long it ran and waited."""
    monkeypatch.setattr(cpu_usage, "TASKS", tmp_path / "task")

    def set_threads(**times):
        for name, (ran, waited) in times.items():
            (tmp_path / "task" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "task" / name / "schedstat").write_text(f"{ran} {waited} 12\n")

    return set_threads


def test_the_share_is_what_ran_of_what_could_have(threads):
    threads(main=(1000, 5000))
    meter = CpuMeter()
    meter.start()
    threads(main=(1300, 5600), helper=(100, 200))  # one that was begun meanwhile
    meter.stop()
    assert meter.share == pytest.approx(400 / 1200)


def test_where_nobody_counts_there_is_no_share(threads, tmp_path):
    for text in (None, "0 0 0\n", "gone"):
        if text:
            threads(main=(0, 0))
            (tmp_path / "task" / "main" / "schedstat").write_text(text)
        meter = CpuMeter()
        meter.start()
        meter.stop()
        assert meter.share is None
    assert not is_busy(None)


def test_threads_of_ones_own_that_wait_for_each_other_are_no_busy_machine(monkeypatch):
    monkeypatch.setattr(cpu_usage.torch, "get_num_threads", lambda: 2)
    for cores, share, busy in (
        (2, 0.95, False),
        (2, 0.5, True),
        (1, 0.5, False),
        (1, 0.25, True),
        (4, 0.9, False),
    ):
        monkeypatch.setattr(cpu_usage, "count_cores", lambda cores=cores: cores)
        assert is_busy(share) == busy


@pytest.mark.parametrize(
    ("minutes", "waited", "running", "idle", "asked"),
    [
        (1.0, 10, 2, 0.0, 0),  # a quiet machine: nothing is looked for
        (1.0, 300, 2, 0.0, 1),  # as beside one busy process
        (1.0, 300, 1, 0.0, 0),  # one thread does not delay itself
        (1.0, 10, 1, 1.0, 1),  # a core is free again
        (None, 900, 1, 1.0, 0),  # a run of steps keeps its threads
    ],
)
def test_cores_are_looked_for_again_between_steps(
    minutes, waited, running, idle, asked, threads, tmp_path, monkeypatch
):
    """Looked for at evaluations alone, a busy process cost a run eight ninths of its speed."""
    looked, clock = [], types.SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(recorder, "avoid_busy_cores", lambda: looked.append(1))
    monkeypatch.setattr(recorder, "count_cores", lambda: 2)
    monkeypatch.setattr(cpu_usage.torch, "get_num_threads", lambda: running)
    monkeypatch.setattr(recorder, "time", clock)
    schedule = types.SimpleNamespace(end=10, move_end=lambda *_: None)
    callback = Recorder(tmp_path, NO_CALLBACKS, Clock(minutes), schedule, 1.0)
    callback.cores = types.SimpleNamespace(count_free=lambda: idle)
    state = types.SimpleNamespace(global_step=0, max_steps=10)
    control = types.SimpleNamespace(should_training_stop=False)
    threads(main=(1000, 5000))
    callback.on_train_begin(None, state, control)
    for second in range(8):
        clock.monotonic = lambda second=second: 101.0 + second
        threads(main=(1900 + 1000 * second, 5000 + waited * (1 + second)))
        callback.on_step_end(types.SimpleNamespace(max_steps=10), state, control)
    assert len(looked) == asked * 3  # nothing changes: at once, and two and four seconds later


@pytest.mark.skipif(
    not cpu_usage.read_threads(), reason="needs Linux to count how long a thread waits"
)
def test_this_process_is_counted():
    meter = CpuMeter()
    meter.start()
    sum(range(3_000_000))
    meter.stop()
    assert 0 < meter.share <= 1
