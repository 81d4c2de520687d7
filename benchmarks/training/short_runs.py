"""Account for the seconds of a short run: what of them is not training.

Each rung is trained on python-docs for the minutes that `rung climb` gives it, by a process of its
own. Its text and tokenizer are in the cache, as they are for all rungs of a climb but the first;
the start of Python, which a climb has once, is shown and does not count: minutes begin after it.
Steps are what training
takes from one to the next; `between` is what no other column has: models are built and saved, the
Trainer starts. Seconds of the clock come first, then those of the CPU, which a busy machine does
not change much.

    python benchmarks/training/short_runs.py [--minutes 1.25] > benchmarks/training/short_runs.txt
"""

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import torch

from rung.device import describe_device
from rung.ladder import LADDER, is_counting

STAGES = ("start", "reading", "measuring", "steps", "evaluating", "scoring", "between")


class Account:
    """The seconds of each stage by the clock and of the CPU; a stage within another is its own."""

    def __init__(self):
        self.wall, self.cpu = Counter(), Counter()
        self.open = ["between"]
        self.last = time.perf_counter(), time.process_time()

    def charge(self):
        """Charge what has passed to the stage that is open."""
        now = time.perf_counter(), time.process_time()
        self.wall[self.open[-1]] += now[0] - self.last[0]
        self.cpu[self.open[-1]] += now[1] - self.last[1]
        self.last = now

    @contextlib.contextmanager
    def stage(self, name):
        self.charge()
        self.open.append(name)
        try:
            yield
        finally:
            self.charge()
            self.open.pop()

    def wrap(self, room, function, name):
        """Let the calls of a room's function count as a stage."""
        called = getattr(room, function)

        @functools.wraps(called)
        def charged(*arguments, **options):
            with self.stage(name):
                return called(*arguments, **options)

        setattr(room, function, charged)


def run_child(rung, minutes, folder):
    """Train one rung, and print the seconds of each stage as JSON."""
    import rung as library
    from rung.training import train
    from rung.training.clock import Clock
    from rung.workflows import record
    from rung.workflows import train as workflow

    began = time.time() - psutil.Process().create_time()
    account = Account()

    class ChargingClock(Clock):
        """A run's clock, which knows when steps begin and end."""

        def start_training(self):
            account.charge()
            super().start_training()

        def count_step(self):
            account.open[-1] = "steps"
            account.charge()
            account.open[-1] = "between"
            super().count_step()

        @contextlib.contextmanager
        def evaluating(self, **options):
            with account.stage("evaluating"), super().evaluating(**options):
                yield

    train.Clock = ChargingClock
    account.wrap(workflow, "prepare", "reading")
    account.wrap(workflow, "fit_budget", "measuring")
    account.wrap(train, "measure_evaluation", "measuring")
    for function in ("generate", "score_documents", "find_marks", "score_text"):
        account.wrap(record, function, "scoring")
    library.train(rung, "python-docs", minutes=minutes, out=folder)
    account.charge()
    account.wall["start"] = began
    print(json.dumps([account.wall, account.cpu]))


def show(name, seconds):
    """Print a line of the table; the share is without the start."""
    share = 1 - seconds["steps"] / (sum(seconds.values()) - seconds.get("start", 0.0))
    figures = "".join(f"{seconds.get(stage, 0.0):>11.1f}" for stage in STAGES)
    print(f"{name:<20}{figures}{share:>11.1%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.25)
    parser.add_argument("--rungs", nargs="+", default=LADDER)
    parser.add_argument("--child", nargs=2)
    chosen = parser.parse_args()
    if chosen.child:
        run_child(chosen.child[0], chosen.minutes, chosen.child[1])
        return
    machine = f"{describe_device(torch.device('cpu'))}, {torch.get_num_threads()} used"
    print(f"$ python benchmarks/training/short_runs.py --minutes {chosen.minutes:g}  # {machine}")
    print("seconds of each stage; the share, without the start, that is not steps of training")
    print(f"{'rung':<20}" + "".join(f"{stage:>11}" for stage in STAGES) + f"{'not steps':>11}")
    for rung in filter(lambda name: not is_counting(name), chosen.rungs):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--minutes", str(chosen.minutes)]
            command += ["--child", rung, str(Path(folder) / "run")]
            made = subprocess.run(command, capture_output=True, text=True, check=True)
        wall, cpu = json.loads(made.stdout.splitlines()[-1])
        show(rung, wall)
        show(f"{rung}, CPU", cpu)


if __name__ == "__main__":
    main()
