"""Progress: what is reported to whoever draws it."""

from types import SimpleNamespace

from rung import progress
from rung.progress import Progress, ProgressMeter, for_run, ignore_progress


def test_what_is_unknown_is_none():
    reading = Progress("reading")
    assert (reading.done, reading.total, reading.seconds_left) == (0, None, None)
    assert (reading.loss, reading.bits_per_byte, reading.tokens_per_second) == (None, None, None)
    assert ignore_progress(reading) is None


def test_a_run_is_named_in_all_that_is_reported():
    seen = []
    for_run("gpt2", seen.append)(Progress("training", 1, 2))
    assert seen == [Progress("training", 1, 2, run="gpt2")]


def test_a_meter_counts_items_and_tokens(monkeypatch):
    clock, seen = SimpleNamespace(now=10.0), []
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    meter = ProgressMeter(seen.append, "scoring", 2)
    meter.step(5)  # at once: nothing is divided by zero
    clock.now += 0.5
    meter.step(5, items=1)
    assert [(each.stage, each.done, each.total) for each in seen] == [
        ("scoring", 0, 2),
        ("scoring", 1, 2),
    ]
    assert (seen[1].tokens_per_second, seen[1].note) == (20.0, "20 tokens/s")
