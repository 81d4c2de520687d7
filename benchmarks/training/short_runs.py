"""Account for the seconds of a short run: what of them is not training.

Each rung is trained on python-docs for the minutes that `rung climb` gives it, by a process of its
own. Its text and tokenizer are in the cache, as they are for all rungs of a climb but the first;
the start of Python, which a climb has once, is shown and does not count.

    python benchmarks/training/short_runs.py [--minutes 1.25] > benchmarks/training/short_runs.txt
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from rung.device import describe_device
from rung.ladder import LADDER, is_counting

STAGES = ("start", "reading", "measuring", "training", "evaluating", "scoring")


def run_child(rung, minutes, folder):
    """Train one rung, and print the seconds of each stage as JSON."""
    import rung as library
    from rung.training import train
    from rung.training.clock import Clock
    from rung.training.measure import measure_evaluation

    clocks = []

    class KeptClock(Clock):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            clocks.append(self)

    measured = [0.0]

    def measure(*arguments):
        before = time.time()
        measure_evaluation(*arguments)
        measured[0] += time.time() - before

    train.Clock, train.measure_evaluation = KeptClock, measure
    entered = {}

    def note(progress):
        entered.setdefault(progress.stage, time.time())

    began = psutil.Process().create_time()
    offset = time.time() - time.perf_counter()
    library.train(
        rung, "python-docs", minutes=minutes, out=folder, on_progress=note, began=began - offset
    )
    ended = time.time()
    evaluating = clocks[-1].evaluated_seconds
    planned = clocks[-1].began + offset
    seconds = {
        "start": entered["reading"] - began,
        "reading": entered["measuring"] - entered["reading"],
        "measuring": planned - entered["measuring"] + measured[0],
        "training": entered["scoring"] - planned - measured[0] - evaluating,
        "evaluating": evaluating,
        "scoring": ended - entered["scoring"],
    }
    print(json.dumps(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.25)
    parser.add_argument("--child", nargs=2)
    chosen = parser.parse_args()
    if chosen.child:
        run_child(chosen.child[0], chosen.minutes, chosen.child[1])
        return
    machine = f"{describe_device(torch.device('cpu'))}, {torch.get_num_threads()} used"
    print(f"$ python benchmarks/training/short_runs.py --minutes {chosen.minutes:g}  # {machine}")
    print("seconds of each stage; the share, without the start, that is not steps of training")
    print(f"{'rung':<14}" + "".join(f"{stage:>12}" for stage in STAGES) + f"{'not steps':>12}")
    for rung in filter(lambda name: not is_counting(name), LADDER):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--minutes", str(chosen.minutes)]
            command += ["--child", rung, str(Path(folder) / "run")]
            made = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = json.loads(made.stdout.splitlines()[-1])
        share = 1 - seconds["training"] / (sum(seconds.values()) - seconds["start"])
        figures = "".join(f"{seconds[stage]:>12.1f}" for stage in STAGES)
        print(f"{rung:<14}{figures}{share:>12.1%}", flush=True)


if __name__ == "__main__":
    main()
